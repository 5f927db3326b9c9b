"""How commands fail: one line, a remedy, a status that does not change."""

from __future__ import annotations

import errno
import logging

import pytest
from typer.testing import CliRunner

from cerne.cli.app import app
from cerne.cli.failure import own_failures_are_125, reported
from cerne.errors import GuestError, InputError, NotFoundError, NotRunError
from cerne.spec.machine import machine_spec


def _status(error: BaseException) -> object:
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    return caught.value.code


def test_a_failure_is_one_line_and_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(NotFoundError("there is no machine named x", hint="see: cerne ls")) == 3
    assert capsys.readouterr().err == "cerne: there is no machine named x\n  see: cerne ls\n"


def test_text_from_a_guest_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _status(GuestError("it said \x1b[2J"))
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InputError("x"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 11),
    ],
)
def test_statuses(error: BaseException, status: int) -> None:
    assert _status(error) == status


def test_cernes_own_failure_is_not_the_guests_status() -> None:
    with pytest.raises(SystemExit) as caught, own_failures_are_125():
        raise NotFoundError("there is no machine named x")
    assert caught.value.code == 125


@pytest.mark.parametrize(("missing", "status"), [(True, 127), (False, 126)])
def test_a_command_that_the_guest_does_not_run_has_the_status_of_shells(
    missing: bool, status: int
) -> None:
    error = NotRunError("cannot run x: …", missing=missing)
    with pytest.raises(SystemExit) as caught, own_failures_are_125():
        raise error
    assert caught.value.code == status
    assert _status(error) == 8


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pids_limit": 5}, "--pids-limit must be at least 64, not 5"),
        ({"ports": 80}, "--publish must be a list, not 80"),
        ({"cpus": "x"}, "--cpus must be an integer, not 'x'"),
        ({"colour": 1}, "a machine has no field colour"),
    ],
)
def test_an_error_names_the_option_that_was_typed(
    asked: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), reported():
        machine_spec(name="x", image="tiny", **asked)
    assert capsys.readouterr().err.splitlines()[0] == f"cerne: {message}"


def test_a_wrong_value_leads_to_the_help_of_its_own_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit), reported():
        app(["create", "--pids-limit", "5", "tiny"], prog_name="cerne")
    with pytest.raises(SystemExit), reported():
        app(["run", "--pids-limit", "5", "tiny"], prog_name="cerne")
    hints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    assert hints == ["  see: cerne create --help", "  see: cerne run --help"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "12x"], "--memory '12x' is not a size"),
        (["--memory", "0"], "--memory is 0, which is out of bounds"),
        (["--cpus", "0"], "--cpus is 0, which is not a number of CPUs"),
        (["--memory-limit", "12x"], "--memory-limit '12x' is not a size"),
        (["-p", "1:1", "-p", "x"], "--publish 'x' is not a published port"),
        (["--cpu-pin", "x"], "--cpu-pin 'x' is not a list of CPUs"),
    ],
)
def test_a_wrong_value_is_said_with_its_option(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, reported():
        app(["create", "--name", "web", *words, "tiny"], prog_name="cerne")
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"cerne: {said}")


def test_what_is_no_failure_passes() -> None:
    with reported(), own_failures_are_125():
        pass


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["run", "--nope", "tiny"], 125),
        (["run"], 125),
        (["exec", "--env"], 125),
        (["shell"], 125),
        (["ls", "--nope"], 2),
    ],
)
def test_an_option_that_is_not_there_is_no_status_of_a_guest(words: list[str], status: int) -> None:
    assert CliRunner().invoke(app, words).exit_code == status


def test_a_mistake_in_the_code_is_no_traceback(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "cerne"):
        assert _status(KeyError("no_such_key")) == 1
    said = capsys.readouterr().err
    assert said.startswith("cerne: Cerne has a mistake in its code: KeyError: 'no_such_key'\n")
    assert "cerne -v" in said
    assert "Traceback" not in said
    assert "Traceback" in caplog.text
    with pytest.raises(SystemExit) as caught, own_failures_are_125():
        raise KeyError("no_such_key")
    assert caught.value.code == 125


def test_what_the_system_refuses_says_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(PermissionError(errno.EACCES, "Permission denied", "/a file")) == 1
    assert capsys.readouterr().err.splitlines() == [
        "cerne: the system refused /a file: Permission denied",
        "  see: ls -ld '/a file'",
    ]
