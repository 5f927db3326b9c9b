"""Options of commands, made of the table of a machine's fields."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from cerne.cli.app import app
from cerne.errors import InputError
from cerne.spec import machine
from cerne.spec.asked import Adjustment, MachineFields
from cerne.spec.flag import Flag, Use

_COMMANDS: list[tuple[Use, tuple[str, ...]]] = [
    ("make", ("run",)),
    ("make", ("create",)),
    ("template", ("pool", "create")),
    ("template", ("image", "warm")),
    ("set", ("set",)),
]


def _help(*words: str) -> str:
    ran = CliRunner().invoke(app, [*words, "--help"], terminal_width=200)
    assert ran.exit_code == 0, ran.output
    return " ".join(ran.output.split())


def _option(word: str, flag: Flag) -> str:
    return flag.names[0] if flag.names else f"--{word.replace('_', '-')}"


@pytest.mark.parametrize(("use", "words"), _COMMANDS)
def test_a_command_has_the_options_of_its_use_and_no_others(
    use: Use, words: tuple[str, ...]
) -> None:
    text = _help(*words)
    for word, flag in machine.flags().items():
        assert (f" {_option(word, flag)} " in text) is (use in flag.uses), word
        assert (flag.help in text) is (use in flag.uses), word


def test_a_new_field_is_a_row_of_the_table(home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    known = machine.flags()
    new = Flag("The colour of its case.", default="grey")
    monkeypatch.setattr("cerne.spec.machine.flags", lambda: known | {"case_colour": new})
    assert "--case-colour TEXT The colour of its case. [default: (grey)]" in _help("run")
    ran = CliRunner().invoke(app, ["create", "--case-colour", "red", "tiny"])
    assert isinstance(ran.exception, InputError)
    assert ran.exception.message == "a machine has no field case_colour"


@pytest.mark.parametrize(
    "words", [("create", "--cpus", "two", "tiny"), ("fork", "--count", "two", "a")]
)
def test_what_is_not_a_number_is_said_in_plain_words(words: tuple[str, ...], home: object) -> None:
    ran = CliRunner().invoke(app, list(words))
    assert f"'{words[1]}': 'two' is not a whole number; write it as 2" in ran.output


def test_what_is_not_given_is_not_asked_for(home: object) -> None:
    ran = CliRunner().invoke(app, ["create", "--name", "../x", "tiny"])
    assert isinstance(ran.exception, InputError)
    ran = CliRunner().invoke(app, ["set", "nosuch"])
    assert "there is no machine named nosuch" in str(ran.exception)


def test_callers_in_python_are_told_of_the_same_fields() -> None:
    known = machine.flags().items()
    assert {*MachineFields.__annotations__} == {word for word, flag in known if "make" in flag.uses}
    assert {*Adjustment.__annotations__} == {word for word, flag in known if "set" in flag.uses}


@pytest.mark.parametrize("words", [["--help"], ["exec", "--help"], ["ls", "--help"]])
def test_no_model_is_loaded_for_commands_without_such_options(words: list[str]) -> None:
    program = (
        "import sys; from cerne.cli.app import app\n"
        f"try: app({words!r})\n"
        "except SystemExit: pass\n"
        "sys.exit('cerne.spec.machine' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_the_shell_is_offered_the_options() -> None:
    ran = CliRunner().invoke(
        app,
        [],
        prog_name="cerne",
        env={
            "_CERNE_COMPLETE": "complete_bash",
            "COMP_WORDS": "cerne run --cpu",
            "COMP_CWORD": "2",
        },
    )
    assert ran.output.split() == [
        "--cpus",
        "--cpu-guarantee",
        "--cpu-limit",
        "--cpu-weight",
        "--cpu-pin",
    ]
