"""Machines live as their state machine says, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from tests.e2e.conftest import Cerne, Engine
from tests.waiting import PATIENCE

Eventually = Callable[[Callable[[], bool]], None]
Interrupt = Callable[[subprocess.Popen[bytes]], int]


def _pid(cerne: Cerne, name: str) -> int:
    pid = cerne.machine(name)["pid"]
    assert isinstance(pid, int)
    return pid


def _runs_a_command(cerne: Cerne, name: str) -> bool:
    seen = cerne("exec", name, "--", "pidof", "sleep")
    return seen.returncode == 0


def test_a_life(cerne: Cerne, engine: Engine) -> None:
    assert cerne.ok("create", "--name", "a", *engine.options, "tiny") == "a\n"
    assert cerne.machine("a")["state"] == "defined"
    cerne.ok("start", "a")
    assert "running already" in cerne.refused("start", "a", status=4)
    cerne.ok("pause", "a")
    assert cerne.machine("a")["state"] == "paused"
    assert "resume it" in cerne.refused("exec", "a", "true", status=125)
    cerne.ok("resume", "a")
    assert cerne.ok("exec", "a", "echo", "awake") == "awake\n"
    cerne.ok("rename", "a", "b")
    assert cerne.ok("exec", "b", "hostname") == "b\n"
    assert "cerne rm --force b" in cerne.refused("rm", "b", status=4)
    cerne.ok("stop", "--timeout", "120s", "b")
    stopped = cerne.machine("b")
    assert (stopped["state"], stopped["reason"], stopped["pid"]) == ("stopped", "shut down", None)
    cerne.ok("rm", "b")
    assert cerne.names() == []


@pytest.mark.slow_if_emulated
def test_one_that_is_killed(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    cerne.ok("kill", "a")
    assert cerne.machine("a")["reason"] == "killed"
    assert cerne.ok("wait", "a") == "stopped\n"


@pytest.mark.slow_if_emulated
def test_a_life_after_the_first(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    cerne.ok("restart", "a")
    assert cerne.ok("exec", "a", "hostname") == "a\n"
    cerne.ok("stop", "a")
    cerne.ok("rename", "a", "b")
    cerne.ok("start", "b")
    assert cerne.ok("exec", "b", "hostname") == "b\n"
    os.kill(_pid(cerne, "b"), signal.SIGKILL)
    cerne.ok("start", "b")
    assert cerne.ok("exec", "b", "echo", "again") == "again\n"


@pytest.mark.slow_if_emulated
def test_a_guest_that_shuts_itself_down_is_stopped(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    cerne("exec", "a", "poweroff")
    assert cerne.ok("wait", "--timeout", "120s", "a") == "stopped\n"


@pytest.mark.slow_if_emulated
def test_a_process_killed_by_hand_is_noticed(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    os.kill(_pid(cerne, "a"), signal.SIGKILL)
    assert cerne.ok("wait", "--timeout", "120s", "a") == "failed\n"
    assert "killed" in str(cerne.machine("a")["reason"])


@pytest.mark.slow_if_emulated
def test_a_guest_that_does_not_shut_down_is_killed(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    os.kill(_pid(cerne, "a"), signal.SIGSTOP)
    cerne.ok("stop", "--timeout", "1s", "a")
    assert "did not shut down within 1 s" in str(cerne.machine("a")["reason"])


def test_a_command_killed_midway_leaves_what_the_next_one_mends(
    cerne: Cerne, engine: Engine, eventually: Eventually
) -> None:
    for moment in (0.1, 0.25, 0.4, 0.7):
        name = f"a{int(moment * 100)}"
        command = cerne.begin("run", "-d", "--name", name, *engine.options, "tiny")
        time.sleep(moment)
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
        if name in cerne.names():
            assert cerne.machine(name)["state"] in ("defined", "failed", "running")
            cerne.ok("rm", "--force", name)
        eventually(lambda: cerne.processes() == [])
    cerne.ok("create", "--name", "after", *engine.options, "tiny")


@pytest.mark.slow_if_emulated
def test_ctrl_c_undoes_what_was_begun(
    cerne: Cerne, engine: Engine, interrupt: Interrupt, eventually: Eventually
) -> None:
    run = ("run", *engine.options)
    for moment in (0.3, 0.6, 0.9):
        command = cerne.begin(*run, "--name", "a", "tiny", "--", "sleep", "1000")
        time.sleep(moment)
        if command.poll() is None:
            interrupt(command)
        cerne("rm", "--force", "a")
        eventually(lambda: cerne.processes() == [])
    command = cerne.begin(*run, "--rm", "--name", "b", "tiny", "--", "sleep", "1000")
    eventually(lambda: _runs_a_command(cerne, "b"))
    assert interrupt(command) in (130, 128 + 2)
    assert cerne.names() == []


def test_two_commands_on_one_machine(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("create", "--name", "a", *engine.options, "tiny")
    both = [cerne.begin("start", "a") for _ in range(2)]
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 4], said
    assert cerne.ok("exec", "a", "echo", "one") == "one\n"


def test_a_name_is_given_once(cerne: Cerne) -> None:
    both = [cerne.begin("create", "--name", "a", "tiny") for _ in range(2)]
    for process in both:
        process.communicate(timeout=PATIENCE)
    assert sorted(process.returncode for process in both) == [0, 4]
    assert cerne.names() == ["a"]


@pytest.mark.slow_if_emulated
def test_a_restarted_host_is_told_from_a_crash(cerne: Cerne, engine: Engine) -> None:
    import sqlite3

    cerne.ok("run", "-d", "--name", "a", *engine.options, "tiny")
    pid = _pid(cerne, "a")
    with sqlite3.connect(cerne.home / "store.sqlite") as database:
        database.execute("UPDATE machines SET boot_id = 'an earlier boot'")
    assert cerne.machine("a")["reason"] == "the host was restarted"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow_if_emulated
def test_two_processors_run_pause_and_fork(
    cerne: Cerne, engine: Engine, no_templates: None
) -> None:
    options = (*engine.options, "--cpus", "2", "--timeout", "250s")
    cerne.ok("run", "-d", "--name", "n", *options, "tiny", timeout=280)
    assert cerne.ok("exec", "n", "nproc") == "2\n"
    cerne.ok("pause", "n")
    cerne.ok("resume", "n")
    cerne.ok("fork", "n", "--name", "child")
    for name in ("n", "child"):
        assert cerne.ok("exec", name, "--", "sh", "-c", "true & nproc; wait") == "2\n"


@pytest.mark.slow
def test_ten_machines_at_once(cerne: Cerne, engine: Engine) -> None:
    names = [f"m{number}" for number in range(10)]
    begun = [cerne.begin("run", "-d", "--name", n, *engine.options, "tiny") for n in names]
    for process in begun:
        _, said = process.communicate(timeout=280)
        assert process.returncode == 0, said.decode()
    running = [machine["state"] for machine in json.loads(cerne.ok("ls", "--json"))]
    assert running == ["running"] * 10
    for name in names:
        assert cerne.ok("exec", name, "hostname").strip() == name
    cerne.ok("rm", "--force", *names)
    assert cerne.leftovers() == []


def test_more_memory_than_is_left_is_refused(cerne: Cerne) -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    most = str(total * 3 // 5)
    cerne.ok("create", "--name", "a", "--memory", f"{most}M", "tiny")
    cerne.ok("create", "--name", "b", "--memory", f"{most}M", "tiny")
    cerne.ok("start", "a")
    assert "more than is free" in cerne.refused("start", "b", status=5)
    assert cerne.machine("b")["state"] == "defined"
