"""Commands over many machines, of which one hangs, is damaged or is not there."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable

import pytest
from tests.e2e.conftest import Cerne, Engine

from cerne.host.process import ProcessIdentity

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def hung(cerne: Cerne, engine: Engine, eventually: Eventually) -> int:
    """The process of a machine named ``hung``, which is stopped; one named ``web`` runs."""
    for name in ("web", "hung"):
        cerne.ok("run", "-d", "--name", name, *engine.options, "tiny")
    pid = cerne.machine("hung")["pid"]
    assert isinstance(pid, int)
    _stop(pid, eventually)
    return pid


def _stop(pid: int, eventually: Eventually) -> None:
    process = ProcessIdentity.of(pid)
    assert process is not None
    process.send(signal.SIGSTOP)
    eventually(lambda: process.state() == "T")


def test_one_that_hangs_holds_up_nothing_but_itself(
    cerne: Cerne, hung: int, eventually: Eventually
) -> None:
    done = cerne("stats", "--json")
    assert (done.returncode, len(json.loads(done.stdout))) == (9, 2)
    words = f"process {hung} of hung does not answer: it is stopped (T)"
    assert words in done.stderr.decode()
    for command in ("suspend", "fork", "pause"):
        assert words in cerne.refused(command, "hung", status=9)
    assert words in cerne.refused("snapshot", "create", "hung", status=9)
    assert words in cerne.refused("exec", "hung", "true", status=125)
    with sqlite3.connect(cerne.home / "store.sqlite") as database:
        database.execute("UPDATE machines SET state = 'saving' WHERE name = 'hung'")
    listed = {found["name"]: found["state"] for found in json.loads(cerne.ok("ls", "--json"))}
    assert listed == {"web": "running", "hung": "saving"}
    os.kill(hung, signal.SIGCONT)
    eventually(lambda: cerne.machine("hung")["state"] == "running")
    _stop(hung, eventually)
    done = cerne("stop", "--timeout", "1s", "no-such", "hung")
    assert (done.returncode, done.stdout) == (3, b"hung\n")
    assert b"hung was killed: it did not shut down within 1 s" in done.stderr
    assert cerne.machine("web")["state"] == "running"


def test_each_is_told_and_the_rest_is_done(cerne: Cerne) -> None:
    for name in ("a", "b", "c"):
        cerne.ok("create", "--name", name, "tiny")
    with sqlite3.connect(cerne.home / "store.sqlite") as database:
        database.execute("UPDATE machines SET spec = '{', state = 'odd' WHERE name = 'b'")
    done = cerne("ls")
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, [line.split()[0] for line in lines[1:]]) == (10, ["a", "b", "c"])
    assert b"specification of b is not readable" in done.stderr
    assert cerne.ok("ls", "--quiet") == "a\nb\nc\n"
    done = cerne("wait", "a", "no-such", "c")
    assert (done.returncode, done.stdout) == (3, b"defined\ndefined\n")
    with sqlite3.connect(cerne.home / "store.sqlite") as database:
        database.execute("UPDATE machines SET spec = (SELECT spec FROM machines WHERE name = 'a')")
    done = cerne("rm", "a", "no-such", "c", "b")
    assert (done.returncode, done.stdout) == (3, b"a\nc\nb\n")


def test_a_command_that_fails_says_that_its_machine_runs_on(cerne: Cerne) -> None:
    done = cerne("run", "--name", "web", "--engine", "qemu", "tiny", "no-such-command")
    assert done.returncode != 0
    assert b"web still runs" in done.stderr
    assert b"cerne rm -f web" in done.stderr
    assert cerne.machine("web")["state"] == "running"


def test_what_is_refused_leaves_its_name_free(cerne: Cerne, port: int) -> None:
    refused = ("--publish", f"{port}:80", "--engine", "qemu", "tiny")
    cerne.ok("run", "-d", "--name", "first", *refused)
    said = cerne.refused("run", "-d", "--name", "web", *refused)
    assert "web was removed" in said
    assert cerne.names() == ["first"]
    cerne.ok("run", "-d", "--name", "web", "--engine", "qemu", "tiny")
