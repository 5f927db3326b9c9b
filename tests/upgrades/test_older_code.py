"""What code of 28 November 2026 (6df3928) made on this host is used by the code of today.

``cerne-6df3928.tar.xz`` is ``git archive 6df3928 src``. It runs here as it ran then, in a home of
its own, and then the command line of today goes on in that home.
"""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne
from tests.e2e.forks import started

_CODE = Path(__file__).with_name("cerne-6df3928.tar.xz")
_OPTIONS = ("--engine", "qemu", "--memory", "128M")
_FORWARD = "127.0.0.1:18999:80"


class _Older(Cerne):
    """The command line of that time."""

    def __init__(self, home: Path, source: Path) -> None:
        super().__init__(home)
        self.environment["PYTHONPATH"] = str(source)
        self.prefix = (sys.executable, "-P", "-m")
        self.program = "cerne"


@pytest.fixture(scope="module")
def older(qemu: Path) -> Iterator[Cerne]:
    """The command line of today, in a home that the older code made and filled."""
    directory = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    home = directory / "h"
    with tarfile.open(_CODE) as archive:
        archive.extractall(directory, filter="data")
    try:
        _fill(_Older(home, directory / "src"), directory)
        with started() as forks:
            cerne = Cerne(home, forks)
            yield cerne
            cerne.ok("pool", "rm", "p")
            cerne.ok("rm", "--force", *cerne.names())
            cerne.ok("snapshot", "rm", "kept")
            assert cerne.leftovers() == []
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fill(cerne: Cerne, directory: Path) -> None:
    cerne.ok("image", "build", "tiny", timeout=280)
    fields = ("--data-disk", "64M", "-p", _FORWARD, "--label", "a=b")
    cerne.ok("create", "--name", "plain", *_OPTIONS, *fields, "tiny")
    cerne.ok("run", "-d", "--name", "asleep", *_OPTIONS, "tiny")
    cerne.ok("exec", "asleep", "--", "sh", "-c", "echo before >/tmp/word")
    cerne.ok("snapshot", "create", "asleep", "kept")
    cerne.ok("snapshot", "export", "kept", str(directory / "kept.cerne"))
    cerne.ok("suspend", "asleep")
    cerne.ok("pool", "create", "p", "--image", "tiny", "--ready", "1", *_OPTIONS)


def _ready(cerne: Cerne) -> int:
    (pool,) = json.loads(cerne.ok("pool", "ls", "--json"))
    return int(pool["ready"])


def test_its_machines_are_listed_as_they_were_defined(older: Cerne) -> None:
    assert {"plain", "asleep"} <= set(older.names())
    assert older.machine("plain")["state"] == "defined"
    shown = older.ok("inspect", "plain")
    assert "127.0.0.1:18999 → 80/tcp" in shown
    assert "data1" in shown
    assert "a=b" in shown
    (kept,) = json.loads(older.ok("snapshot", "ls", "--json"))
    assert (kept["name"], kept["machine"]) == ("kept", "asleep")


def test_its_suspended_machine_wakes(older: Cerne) -> None:
    assert older.machine("asleep")["state"] == "suspended"
    older.ok("wake", "asleep")
    assert older.ok("exec", "asleep", "cat", "/tmp/word") == "before\n"


def test_its_snapshot_is_restored(older: Cerne) -> None:
    older.ok("snapshot", "restore", "kept", "--as", "restored")
    assert older.ok("exec", "restored", "cat", "/tmp/word") == "before\n"


def test_its_archive_is_imported(older: Cerne) -> None:
    archive = older.home.parent / "kept.cerne"
    older.ok("snapshot", "import", str(archive), "--name", "imported")
    older.ok("snapshot", "restore", "imported", "--as", "moved")
    assert older.ok("exec", "moved", "cat", "/tmp/word") == "before\n"
    older.ok("rm", "--force", "moved")
    older.ok("snapshot", "rm", "imported")


def test_its_pool_gives_a_machine_that_runs_and_is_refilled(
    older: Cerne, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    assert _ready(older) == 1
    # The older code started it, and it has run since.
    assert older.ok("pool", "take", "p", "--name", "mine") == "mine\n"
    assert older.ok("exec", "mine", "hostname") == "mine\n"
    eventually(lambda: _ready(older) == 1)
    older.ok("stop", "mine")
    assert older.machine("mine")["state"] == "stopped"
