"""Commands in guests, as Python gives them: what is refused, and the shapes of results."""

from __future__ import annotations

from typing import cast

import pytest

from cerne.errors import CommandError, GuestError, InputError
from cerne.guest import ExecResult, GuestAgent
from cerne.guest.client import _started
from cerne.guest.session import Session
from cerne.manager import Machine


class _Agent:
    """An agent whose commands end at once, as they are told to."""

    def __init__(self, result: ExecResult) -> None:
        self.result = result
        self.stdin: object = None

    def run(self, argv: list[str], *, stdin: object, **_options: object) -> ExecResult:
        self.stdin = stdin
        return self.result


@pytest.fixture
def agent(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> _Agent:
    made = _Agent(ExecResult(0, None, b"\xff\xc3\xa9", b"e"))
    monkeypatch.setattr(machine, "agent", lambda: made)
    return made


def test_input_and_text(machine: Machine, agent: _Agent) -> None:
    assert machine.exec(["cat"], input="é").stdout == b"\xff\xc3\xa9"
    assert agent.stdin == "é".encode()
    assert machine.exec(["cat"], stdin=b"x", text=True).stdout == "\ufffdé"
    assert agent.stdin == b"x"
    with pytest.raises(InputError, match="stdin and input"):
        machine.exec(["cat"], stdin=b"x", input=b"y")


def test_check(machine: Machine, agent: _Agent) -> None:
    machine.exec(["true"], check=True)
    agent.result = ExecResult(3, None, b"o", b"why")
    assert machine.exec(["false"]).status == 3
    with pytest.raises(CommandError, match="false ended with status 3 in web") as caught:
        machine.exec(["false"], check=True, text=True)
    assert (caught.value.result.status, caught.value.result.stderr) == (3, "why")
    agent.result = ExecResult(137, 9)
    with pytest.raises(CommandError, match="by signal 9"):
        machine.exec(["sleep", "9"], check=True)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("uname -a", r"one string.*\n.*\['uname', '-a'\].*\['sh', '-c', 'uname -a'\]"),
        ([], "the command is empty"),
        (["a", 1], "1 in the"),
    ],
)
def test_commands_that_are_none(argv: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        GuestAgent([]).run(cast("list[str]", argv))


@pytest.mark.parametrize("cwd", ["", "relative", "./x"])
def test_working_directories_that_are_none(cwd: str) -> None:
    with pytest.raises(InputError, match="absolute path"):
        GuestAgent([]).run(["true"], cwd=cwd)


def test_a_working_directory_that_is_not_there() -> None:
    class Answering:
        def expect(self, _kind: object, _timeout: float) -> bytes:
            raise GuestError("cannot start in /nope: Not a directory")

    session = cast("Session", Answering())
    with pytest.raises(GuestError, match="/nope does not exist in the guest"):
        _started(session, "/nope")
    with pytest.raises(GuestError, match="cannot start"):
        _started(session, None)


def test_machines_say_what_they_are(machine: Machine) -> None:
    assert repr(machine) == "<Machine web defined of blank>"
    assert repr(machine.snapshot("s")) == "<Snapshot s of web>"


def test_a_time_limit_may_be_a_text(
    machine: Machine, agent: _Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def run(argv: list[str], *, timeout: object, **_options: object) -> ExecResult:
        given.append(timeout)
        return agent.result

    monkeypatch.setattr(agent, "run", run)
    machine.exec(["true"], timeout="250ms")
    machine.exec(["true"], timeout=3)
    machine.exec(["true"])
    assert given == [0.25, 3, None]
    with pytest.raises(InputError, match="is not a duration"):
        machine.exec(["true"], timeout="soon")
    with pytest.raises(InputError, match="is not a duration"):
        machine.stop(timeout="soon")
