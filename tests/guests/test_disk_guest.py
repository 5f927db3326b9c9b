"""A guest of ours whose disk a storage daemon serves, which is killed under it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.guests.conftest import Built
from tests.processes import commands, opened
from tests.waiting import PATIENCE

from cerne.engine.native import NativeEngine
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan
from cerne.engine.qmp import QmpClient
from cerne.errors import InputError
from cerne.host.process import ProcessIdentity
from cerne.host.programs import find_program
from cerne.units import MIB

Eventually = Callable[[Callable[[], bool]], None]


@pytest.fixture
def plan(home: Path, built: Built) -> LaunchPlan:
    if find_program("qemu-storage-daemon") is None:
        pytest.skip("qemu-storage-daemon is not installed")
    disk = home / "disk"
    disk.write_bytes(bytes(MIB))
    boot = KernelBoot(built("disk"), None, "")
    disks = (DiskPlan(disk, "raw", outside=True),)
    for name in ("run", "logs"):
        (home / name).mkdir()
    return LaunchPlan("d", "d", 1, 16 * MIB, boot, disks, (), (), home / "run", home / "logs")


@pytest.fixture
def machine(plan: LaunchPlan, emulated: bool) -> Iterator[ProcessIdentity]:
    process = NativeEngine(emulated).start(plan).process
    yield process
    process.send(signal.SIGKILL)
    process.wait(PATIENCE)


def _daemons(home: Path) -> list[int]:
    """Storage daemons that have this machine's disk open."""
    daemons = [pid for pid, words in commands().items() if words[0].endswith(b"-storage-daemon")]
    return [pid for pid in daemons if str(home / "disk") in opened(pid)]


def _wait_for(plan: LaunchPlan, words: bytes, count: int = 1) -> bytes:
    deadline = time.monotonic() + 120
    while (said := plan.console_log.read_bytes()).count(words) < count:
        assert time.monotonic() < deadline, (said, plan.engine_log.read_text())
        time.sleep(0.01)
    return said


def test_a_guest_goes_on_when_its_storage_daemon_is_killed(
    home: Path, plan: LaunchPlan, machine: ProcessIdentity, eventually: Eventually
) -> None:
    for dots in (5, 20):
        _wait_for(plan, b".", dots)
        for daemon in _daemons(home):
            os.kill(daemon, signal.SIGKILL)
    assert b"WRONG" not in _wait_for(plan, b"done")
    log = plan.engine_log.read_text()
    assert log.count("has come back") == 2
    for sector in range(1, 61):
        first = (home / "disk").read_bytes()[sector * 512 :][:8]
        assert int.from_bytes(first, "little") == sector << 32
    with pytest.raises(InputError, match="neither saves nor forks"):
        engine = NativeEngine(emulated=False)
        engine.attach(engine.describe(plan, machine)).fork((), [])
    with QmpClient(plan.qmp_socket) as client:
        client.quit()
    assert machine.wait(PATIENCE)
    eventually(lambda: _daemons(home) == [])


def test_a_guest_that_only_looks_at_its_ring_sees_no_index_that_is_none(
    plan: LaunchPlan, emulated: bool
) -> None:
    """As long as its disk is our own: an index is written in one piece."""
    served_here = replace(plan, disks=(replace(plan.disks[0], outside=False),))
    process = NativeEngine(emulated).start(served_here).process
    try:
        assert b"WRONG" not in _wait_for(served_here, b"done")
    finally:
        process.send(signal.SIGKILL)
        process.wait(PATIENCE)


def test_a_storage_daemon_goes_with_a_machine_that_was_killed(
    home: Path, plan: LaunchPlan, machine: ProcessIdentity, eventually: Eventually
) -> None:
    _wait_for(plan, b".")
    assert len(_daemons(home)) == 1
    machine.send(signal.SIGKILL)
    eventually(lambda: _daemons(home) == [])
