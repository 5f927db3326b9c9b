"""Machines of a client that is ended: no signal leaves one behind, or its memory promised."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from tests.e2e.conftest import Cerne, Engine
from tests.processes import commands, with_variable
from tests.waiting import PATIENCE

Eventually = Callable[[Callable[[], bool]], None]

_QEMU = ("--engine", "qemu", "--memory", "128M")

_BLOCK = """
import sys
import cerne
with cerne.run("tiny", name="web", engine=sys.argv[1], memory="128M") as vm:
    vm.exec(["sleep", "1000"])
"""


def _runs_a_command(cerne: Cerne) -> bool:
    return "web" in cerne.names() and cerne("exec", "web", "pidof", "sleep").returncode == 0


def _waits_for_a_client(cerne: Cerne) -> list[int]:
    """The processes that wait for the client of a machine of this home."""
    of_home = with_variable("CERNE_HOME", str(cerne.home))
    found = commands()
    return [pid for pid in of_home if b"select.select" in b" ".join(found.get(pid, []))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_command_removes_its_machine(
    cerne: Cerne, eventually: Eventually, number: signal.Signals
) -> None:
    command = cerne.begin("run", "--rm", "--name", "web", *_QEMU, "tiny", "sleep", "1000")
    eventually(lambda: _runs_a_command(cerne))
    command.send_signal(number)
    command.send_signal(number)
    _, said = command.communicate(timeout=PATIENCE)
    assert (command.returncode, said) == (128 + number, b"")
    assert cerne.names() == []
    assert cerne.processes() == []
    assert _waits_for_a_client(cerne) == []


@pytest.mark.slow_if_emulated
def test_a_client_that_is_killed_takes_its_machine_with_it(
    cerne: Cerne, engine: Engine, eventually: Eventually
) -> None:
    command = cerne.begin("run", "--rm", "--name", "web", *engine.options, "tiny", "sleep", "1000")
    eventually(lambda: _runs_a_command(cerne))
    assert [found["state"] for found in json.loads(cerne.ok("ls", "--json"))] == ["running"]
    command.kill()
    command.communicate()
    # No command is needed for that.
    eventually(lambda: cerne.leftovers() == [])
    eventually(lambda: _waits_for_a_client(cerne) == [])


def test_the_next_command_removes_the_machine_where_the_watcher_is_killed_too(
    cerne: Cerne, eventually: Eventually
) -> None:
    command = cerne.begin("run", "--rm", "--name", "web", *_QEMU, "tiny", "sleep", "1000")
    eventually(lambda: _runs_a_command(cerne))
    (watcher,) = _waits_for_a_client(cerne)
    os.kill(watcher, signal.SIGKILL)
    command.kill()
    command.communicate()
    assert cerne.names() == []
    assert cerne.leftovers() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_block_of_python_that_is_ended_takes_its_machine_with_it(
    cerne: Cerne, eventually: Eventually, number: signal.Signals
) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", _BLOCK, "qemu"],
        env=cerne.environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    eventually(lambda: _runs_a_command(cerne))
    os.killpg(program.pid, number)
    _, said = program.communicate(timeout=PATIENCE)
    assert (program.returncode, said) == (-number, b"")
    eventually(lambda: cerne.leftovers() == [])
