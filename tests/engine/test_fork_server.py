"""Machines that are forked from a process with the VMM loaded."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.processes import opened_files
from tests.waiting import PATIENCE

from cerne.engine.native import NativeEngine, fork_server, launching
from cerne.engine.plan import KernelBoot, LaunchPlan
from cerne.engine.qmp import QmpClient
from cerne.errors import EngineError
from cerne.host.members import Members
from cerne.host.process import ProcessIdentity
from cerne.units import MIB
from cerne.vmm.jail.system import MOST_DESCRIPTORS

_LOOP = bytes.fromhex("ebfe")

Start = Callable[[str], ProcessIdentity]


@pytest.fixture
def start(
    home: Path, kvm_device: Path, small_kernel: Callable[[Path, bytes], Path]
) -> Iterator[Start]:
    """Starts a machine of this name, in the program's second turn or later."""
    processes: list[ProcessIdentity] = []
    kernel = small_kernel(home / "kernel", _LOOP)
    fork_server.running_fork_server()

    def start(name: str) -> ProcessIdentity:
        processes.append(NativeEngine(emulated=False).start(_plan(home, kernel, name)).process)
        return processes[-1]

    yield start
    for process in processes:
        process.send(signal.SIGKILL)
        process.wait(PATIENCE)


def _plan(home: Path, kernel: Path, name: str, command_line: str = "") -> LaunchPlan:
    directory = home / name
    directory.mkdir(exist_ok=True)
    boot = KernelBoot(kernel, None, command_line)
    return LaunchPlan(name, name, 1, 16 * MIB, boot, (), (), (), directory, directory)


def _status(process: ProcessIdentity, field: str) -> str:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{field}:"))


def test_machines_are_forked_from_one_process_and_outlive_it(home: Path, start: Start) -> None:
    first, second = start("a"), start("b")
    parent = _status(first, "PPid")
    assert _status(second, "PPid") == parent != str(os.getpid())
    for name, process in (("a", first), ("b", second)):
        title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert os.fsencode(home / name) in title
        assert os.getsid(process.pid) == process.pid
        assert _status(process, "NoNewPrivs") == "1"
    os.kill(int(parent), signal.SIGKILL)
    with pytest.raises(EngineError, match="no VMM could be forked"):
        start("c")
    assert _status(start("d"), "PPid") not in (parent, str(os.getpid()))
    for name in ("a", "b", "d"):
        with QmpClient(home / name / "qmp.sock") as qmp:
            assert qmp.status() == "running"


def test_one_that_cannot_be_says_why(home: Path, start: Start) -> None:
    broken = home / "broken"
    broken.write_bytes(b"no kernel")
    with pytest.raises(EngineError, match="bzImage or vmlinux"):
        NativeEngine(emulated=False).start(_plan(home, broken, "x"))
    wordy = _plan(home, home / "kernel", "y", "x" * (1 << 18))
    with pytest.raises(EngineError, match="too much"):
        NativeEngine(emulated=False).start(wordy)
    start("a")


def test_it_has_open_what_a_first_machine_has(
    home: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(process: ProcessIdentity) -> list[str]:
        names = [name.replace("/b/", "/a/") for name in opened_files(process.pid)]
        # Each has a user id of its own.
        return sorted(re.sub(r"(?<=/user-ids/)\d+", "N", name) for name in names)

    forked = files(start("a"))
    monkeypatch.setattr(launching, "running_fork_server", lambda: None)
    assert forked == files(start("b"))


def test_one_that_has_no_room_for_descriptors_says_so(home: Path, start: Start) -> None:
    first = start("a")
    pid = int(_status(first, "PPid"))
    assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] >= 1024
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, hard))
    with pytest.raises(EngineError, match="raise the hard limit"):
        start("b")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert _status(start("c"), "PPid") == str(pid)


def test_machines_may_have_as_many_files_open_as_they_ever_may(start: Start) -> None:
    limits = Path(f"/proc/{start('a').pid}/limits").read_text()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(line.split()[3]) == min(hard, MOST_DESCRIPTORS)


# One whose machines come no further than to be born.
_HOLDING = """
import signal, sys
from cerne import faults
from cerne.vmm.fork_server import main

faults.hook = lambda step: signal.pause()
sys.exit(main())
"""


def test_machines_are_found_by_their_own_names_from_the_first(
    home: Path,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[[Callable[[], bool]], None],
) -> None:
    (home / "fork_server.py").write_text(_HOLDING)
    monkeypatch.setattr(
        fork_server, "PROGRAM", (sys.executable, "-I", str(home / "fork_server.py"))
    )
    holding = fork_server.ForkServer()
    monkeypatch.setattr(launching, "running_fork_server", lambda: holding)
    with ThreadPoolExecutor() as beside:
        starting = beside.submit(start, "held")
        eventually(lambda: len(Members(home / "held").alive()) == 1)
        Members(home / "held").end()
        with pytest.raises(EngineError):
            starting.result()
    holding.close()
