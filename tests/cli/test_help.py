"""What ``--help`` says: whole sentences, of a terminal's width, and the defaults that are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.core import TyperCommand
from typer.testing import CliRunner

from cerne.cli.app import app
from cerne.cli.examples import example_lines
from cerne.manager import READY_TIMEOUT
from cerne.spec.machine import machine_spec
from cerne.units import format_size

_WIDTH = 80


def _commands() -> Iterator[tuple[str, ...]]:
    yield ()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        yield (name,)
        yield from ((name, more) for more in getattr(command, "commands", {}))


def _help(*words: str) -> str:
    ran = CliRunner().invoke(
        app, [*words, "--help"], env={"COLUMNS": str(_WIDTH)}, terminal_width=_WIDTH
    )
    assert ran.exit_code == 0, ran.output
    return ran.output


@pytest.mark.parametrize("words", list(_commands()), ids=" ".join)
def test_help_is_whole(words: tuple[str, ...]) -> None:
    text = _help(*words)
    assert re.findall(r"[a-z]\.\.\.$", text, re.MULTILINE) == []
    assert [line for line in text.splitlines() if len(line) > _WIDTH] == []
    for banned in ("Traceback", "whoever", "cannot be", "None"):
        assert banned not in text


def test_each_option_and_argument_says_what_it_is() -> None:
    found = typer.main.get_command(app)
    for words in _commands():
        command = found
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]
        assert (command.help or "").endswith("."), words
        # A command has options once it is asked for.
        command.make_context(words[-1] if words else "cerne", [], resilient_parsing=True)
        for parameter in command.params:
            told = getattr(parameter, "help", None) or ""
            assert told.rstrip().endswith((".", "be repeated.")), (words, parameter.name, told)


def _leaves() -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    """Each command that does something and is shown, with its words and its options."""
    found = typer.main.get_command(app)
    for words in _commands():
        command = found
        for word in words:
            command = command.commands[word]  # type: ignore[attr-defined]
        if isinstance(command, TyperCommand) and not command.hidden:
            # A command has options once it is asked for.
            command.make_context(words[-1], [], resilient_parsing=True)
            yield words, command


def test_values_have_names_that_say_what_they_are() -> None:
    for words, command in _leaves():
        context = command.make_context(words[-1], [], resilient_parsing=True)
        for parameter in command.params:
            is_flag = getattr(parameter, "is_flag", False)
            shown = "" if is_flag else parameter.make_metavar(ctx=context)
            assert not re.search("<|{[a-z]", shown), (words, parameter.name, shown)


def test_each_command_has_an_example_that_can_be_typed() -> None:
    for words, command in _leaves():
        lines = example_lines(" ".join(words))
        assert lines, words
        for line in lines:
            typed = shlex.split(line, comments=True)
            begin = typed.index("cerne") + 1
            end = typed.index("|", begin) if "|" in typed[begin:] else None
            assert tuple(typed[begin : begin + len(words)]) == words, line
            # Wrong options and missing arguments are errors.
            command.make_context(words[-1], typed[begin + len(words) : end])


def test_set_says_which_values_none_removes() -> None:
    text = " ".join(_help("set").split())
    for option in ("--balloon SIZE", "--cpu-limit CPUS", "--publish PORTS", "--mount PATHS"):
        assert f"{option}|none " in text
    assert "--memory SIZE Memory" in text


def test_defaults_are_those_of_a_specification() -> None:
    spec = machine_spec(name="x", image="tiny")
    text = " ".join(_help("run").split())
    for option, default in (
        ("--cpus", str(spec.cpus)),
        ("--memory", format_size(spec.memory)),
        ("--network", spec.network),
        ("--engine", spec.engine),
        ("--timeout", f"{READY_TIMEOUT / 60:g}m"),
    ):
        rest = text[text.index(f" {option} ") :]
        assert f"[default: ({default})]" in rest[: rest.index("]") + 1], option


def test_commands_are_grouped_and_none_is_left_out() -> None:
    text = _help()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert (f"\n  {name} " in text) is not command.hidden, name
    assert text.index("Use a machine:") < text.index("Change its state:") < text.index("Look:")


def test_the_version() -> None:
    ran = CliRunner().invoke(app, ["--version"])
    assert ran.exit_code == 0
    assert ran.output == CliRunner().invoke(app, ["version"]).output


@pytest.mark.parametrize("words", [["ps"], ["list"], ["image", "list"], ["pool", "list"]])
def test_other_names_of_ls(words: list[str], home: Path) -> None:
    runner = CliRunner()
    known = runner.invoke(app, [*words[:-1], "ls"])
    assert runner.invoke(app, words).output == known.output
    assert known.exit_code == 0
