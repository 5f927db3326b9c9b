"""What people type, before it reaches the manager."""

from __future__ import annotations

import pytest

from cerne.cli.guests import _place
from cerne.cli.options import command_words, make_spec, pairs
from cerne.errors import InputError
from cerne.units import GIB


def test_pairs() -> None:
    assert pairs(["A=1", "B=x=y", "C="], "--env") == {"A": "1", "B": "x=y", "C": ""}
    assert pairs(None, "--env") == {}
    for wrong in ("A", "=1"):
        with pytest.raises(InputError, match="KEY=VALUE"):
            pairs([wrong], "--env")


def test_the_command_of_a_guest() -> None:
    assert command_words(["--", "ls", "-l"]) == ["ls", "-l"]
    assert command_words(["ls", "--", "-l"]) == ["ls", "--", "-l"]
    assert command_words(None) == []
    with pytest.raises(InputError, match="--memory comes after"):
        command_words(["--memory", "1G"])


def test_options_become_a_specification() -> None:
    spec = make_spec("tiny", "web", memory="1G", publish=["8080:80"], label=["of=x"])
    assert (spec.name, spec.image, spec.cpus, spec.memory) == ("web", "tiny", 1, GIB)
    assert spec.labels == {"of": "x"}
    assert spec.ports[0].guest_port == 80


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc", ("web", "/etc")),
        ("web:", ("web", ".")),
        ("./a:b", (None, "./a:b")),
        ("/a:b", (None, "/a:b")),
        ("file", (None, "file")),
        (":x", (None, ":x")),
    ],
)
def test_sides_of_a_copy(text: str, place: tuple[str | None, str]) -> None:
    assert _place(text) == place
