"""Variables for commands in guests, from options, from this process, and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.cli.environment import variables
from cerne.errors import InputError, NotFoundError


def test_a_value_may_come_from_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "a secret=1")
    monkeypatch.delenv("ABSENT", raising=False)
    assert variables(["TOKEN", "COLOUR=blue"], []) == {"TOKEN": "a secret=1", "COLOUR": "blue"}
    with pytest.raises(InputError, match="--env 'ABSENT' has no value"):
        variables(["ABSENT"], [])


def test_a_file_has_a_variable_in_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    file = tmp_path / "env"
    file.write_text("# a comment\n\nA=1\nB=x y=z\nTOKEN\n")
    assert variables(["A=2"], [str(file)]) == {"A": "2", "B": "x y=z", "TOKEN": "secret"}


@pytest.mark.parametrize("word", ["1A=x", "A B=x", "1A", "-=x"])
def test_a_name_that_no_shell_takes_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no shell takes"):
        variables([word], [])
    (tmp_path / "env").write_text(f"{word}\n")
    with pytest.raises(InputError, match="no shell takes"):
        variables([], [str(tmp_path / "env")])
    assert variables(["_a.b-c=1"], []) == {"_a.b-c": "1"}


def test_a_file_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=f"see: ls -l {tmp_path}/gone"):
        variables([], [str(tmp_path / "gone")])
    file = tmp_path / "env"
    file.write_text("=1\n")
    with pytest.raises(InputError, match=f"the line of {file} '=1'"):
        variables([], [str(file)])
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not text"):
        variables([], [str(file)])
