"""What people type, before it reaches the manager."""

from __future__ import annotations

import pytest
import typer

from cerne.cli.fields import make_spec
from cerne.cli.guests import _place
from cerne.cli.options import command_words, count
from cerne.errors import InputError
from cerne.units import GIB


def test_the_command_of_a_guest() -> None:
    assert command_words(["--", "ls", "-l"]) == ["ls", "-l"]
    assert command_words(["ls", "--", "-l"]) == ["ls", "--", "-l"]
    assert command_words(None) == []
    with pytest.raises(InputError, match="--memory comes after"):
        command_words(["--memory", "1G"])


@pytest.mark.parametrize("text", ["x", "-3", "1.5", ""])
def test_a_count_is_a_whole_number_that_is_not_negative(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="; write it as"):
        count(text)
    assert count("0") == 0


def test_options_become_a_specification() -> None:
    asked = {"memory": "1G", "ports": ["8080:80"], "labels": ["of=x"]}
    spec = make_spec("tiny", "web", asked)
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
