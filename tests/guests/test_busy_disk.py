"""A disk has its own thread: if it hangs, nothing else stops, and a busy one loses nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tests.guests import hanging_vmm
from tests.guests.conftest import Built
from tests.guests.harness import Running, running

from cerne.engine.base import Instance
from cerne.engine.native import NativeEngine
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan
from cerne.engine.qmp import QmpClient
from cerne.errors import EngineError
from cerne.storage.overlay import create_overlay
from cerne.units import MIB

_HANGING = (hanging_vmm.__file__,)
_PATIENCE = 120


def _ask(console: socket.socket, command: bytes, answer: bytes) -> None:
    """Send the guest a command, and wait for its answer among its dots."""
    console.sendall(command)
    _hear(console, answer)


def _hear(console: socket.socket, wanted: bytes) -> None:
    heard = b""
    while wanted not in heard:
        piece = console.recv(64)
        assert piece, heard
        heard += piece
        assert b"WRONG" not in heard


class Disk:
    """A disk in a file, which hangs on request."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "disk"
        self.path.write_bytes(bytes(64 << 10))
        # The VMM's process is another user's.
        directory.chmod(0o755)
        self._hang = directory / "disk.hang"
        self._hung = directory / "disk.hung"

    def hang(self) -> None:
        """Hang, and return when a request does."""
        self._hang.touch()
        deadline = time.monotonic() + _PATIENCE
        while not self._hung.stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def work(self) -> None:
        self._hang.unlink()


@pytest.fixture
def disk(home: Path) -> Disk:
    directory = home / "storage"
    directory.mkdir()
    return Disk(directory)


@pytest.fixture
def machine(home: Path, built: Built, emulated: bool, disk: Disk) -> Iterator[Running]:
    with running(
        home,
        built("busy"),
        cpus=2,
        disks=[disk.path],
        emulated=emulated,
        program=_HANGING,
    ) as started:
        yield started


def _until_it_hangs(machine: Running, disk: Disk, qmp: QmpClient) -> None:
    """Let its disk hang, and wait until a request does."""
    machine.wait_for(b".")
    disk.hang()
    with pytest.raises(EngineError, match="disk 0 has not finished a request within 2 s"):
        qmp.stop()


def test_a_hung_disk_stops_nothing_else(machine: Running, disk: Disk) -> None:
    with QmpClient(machine.qmp) as qmp, machine.connected() as console:
        console.settimeout(_PATIENCE)
        _until_it_hangs(machine, disk, qmp)
        # The guest runs, and what the VMM's loop and its processor's thread serve answers.
        assert qmp.status() == "running"
        _ask(console, b"x", b"x")
        _ask(console, b"e", b"e")
        _ask(console, b"s", b"s")
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(str(machine.home / "agent0"))
        # Another client is answered while this one waits for the disk.
        with ThreadPoolExecutor(1) as pool, QmpClient(machine.qmp) as other:
            stopping = pool.submit(other.stop)
            assert qmp.status() == "running"
            with pytest.raises(EngineError, match="disk 0"):
                stopping.result(_PATIENCE)
        disk.work()
        qmp.stop()
        assert qmp.status() == "paused"
        qmp.cont()
        _ask(console, b"v", b"V")
        qmp.quit()
        assert machine.end() == (True, "it was told to quit")


def test_a_reset_of_a_hung_disk_is_done_when_it_answers(machine: Running, disk: Disk) -> None:
    with QmpClient(machine.qmp) as qmp, machine.connected() as console:
        console.settimeout(_PATIENCE)
        _until_it_hangs(machine, disk, qmp)
        _ask(console, b"r", b"r")
        # The driver looks at the status again and again, and sees no reset.
        _ask(console, b"e", b"e")
        _ask(console, b"s", b"s")
        assert b"R" not in machine.console().replace(b"WRONG", b"")
        disk.work()
        _hear(console, b"R")
        for _ in range(20):
            _ask(console, b"r", b"R")
        _ask(console, b"v", b"V")


def test_a_reset_of_the_machine_waits_for_its_hung_disk(machine: Running, disk: Disk) -> None:
    with QmpClient(machine.qmp) as qmp:
        _until_it_hangs(machine, disk, qmp)
        qmp.execute("system_reset")
        with pytest.raises(EngineError):
            qmp.wait_event("RESET", timeout=4)
        assert qmp.status() == "running"
        disk.work()
        qmp.wait_event("RESET", timeout=_PATIENCE)
        qmp.quit()
    assert machine.end() == (True, "it was told to quit")
    assert "disk 0 has not finished a request within 2 s; the machine waits" in machine.errors()


def test_a_machine_with_a_hung_disk_ends(machine: Running, disk: Disk) -> None:
    with QmpClient(machine.qmp) as qmp:
        _until_it_hangs(machine, disk, qmp)
        qmp.quit()
    assert machine.end() == (True, "it was told to quit")
    assert "it is left open" in machine.errors()


def test_a_machine_with_a_hung_disk_is_killed(machine: Running, disk: Disk) -> None:
    with QmpClient(machine.qmp) as qmp:
        _until_it_hangs(machine, disk, qmp)
    machine.process.kill()
    assert machine.process.wait(20) < 0


_ROUNDS = 16
_OF_A_ROUND = 2
"""A dot is for so many rounds, of so many requests."""


def test_a_limit_holds_and_stops_nothing_else(machine: Running) -> None:
    rate = 200
    limits: dict[str, object] = {"iops": rate, "bps": None, "receive": None, "send": None}
    with QmpClient(machine.qmp) as qmp, machine.connected() as console:
        console.settimeout(_PATIENCE)
        machine.wait_for(b".")
        begun = time.monotonic()
        qmp.execute("cerne-set-limits", limits)
        before = machine.console().count(b".")
        machine.wait_for(b"." * (before + 4))
        requests = (machine.console().count(b".") - before - 1) * _ROUNDS * _OF_A_ROUND
        assert requests <= rate * (time.monotonic() - begun) + rate / 10 + 1
        # One request in five seconds: the disk rests at once, and what waits is not lost.
        qmp.execute("cerne-set-limits", {**limits, "bps": 100})
        _ask(console, b"e", b"e")
        _ask(console, b"r", b"R")
        qmp.stop()
        assert qmp.status() == "paused"
        qmp.cont()
        qmp.execute("cerne-set-limits", dict.fromkeys(limits))
        _ask(console, b"v", b"V")
        with pytest.raises(EngineError):
            qmp.execute("cerne-set-limits", {**limits, "iops": 0})


@pytest.fixture
def plan(home: Path, built: Built) -> LaunchPlan:
    base, overlay = home / "base", home / "overlay"
    base.write_bytes(bytes(64 << 10))
    create_overlay(base, "raw", overlay)
    boot = KernelBoot(built("busy"), None, "")
    return _of(home, "one", LaunchPlan("", "", 2, 16 * MIB, boot, (), (), (), home, home), overlay)


def _of(home: Path, name: str, plan: LaunchPlan, overlay: Path) -> LaunchPlan:
    """The plan of a machine of this name, with this disk."""
    path = home / name
    path.mkdir()
    disks = (DiskPlan(overlay, "qcow2"),)
    return replace(plan, name=name, machine_id=name, disks=disks, runtime=path, logs=path)


class Machines:
    """Machines of the engine, which are killed at the end."""

    def __init__(self, *, emulated: bool) -> None:
        self.engine = NativeEngine(emulated)
        self.instances: list[Instance] = []

    def start(self, plan: LaunchPlan) -> Instance:
        self.instances.append(self.engine.start(plan))
        return self.instances[-1]

    def verify(self, plan: LaunchPlan) -> None:
        """All that its guest wrote is on its disk."""
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(plan.console_socket))
            console.settimeout(_PATIENCE)
            _hear(console, b"...")
            _ask(console, b"v", b"V")
        assert b"WRONG" not in plan.console_log.read_bytes()


@pytest.fixture
def machines(emulated: bool) -> Iterator[Machines]:
    made = Machines(emulated=emulated)
    yield made
    for instance in made.instances:
        instance.kill()
        instance.wait(20)


def test_forks_and_saves_of_a_busy_machine_lose_nothing(
    home: Path, plan: LaunchPlan, machines: Machines
) -> None:
    instance = machines.start(plan)
    top = plan.disks[0].path
    others = []
    for turn in range(3):
        machines.verify(plan)
        ours, theirs = home / f"ours{turn}", home / f"theirs{turn}"
        for overlay in (ours, theirs):
            create_overlay(top, "qcow2", overlay)
        child = _of(home, f"child{turn}", plan, theirs)
        machines.instances += instance.fork((DiskPlan(ours, "qcow2"),), [child])
        top = ours
        others.append(child)
    saved, ours, theirs = home / "saved", home / "ours", home / "theirs"
    saved.mkdir()
    for overlay in (ours, theirs):
        create_overlay(top, "qcow2", overlay)
    instance.save(saved, (DiskPlan(ours, "qcow2"),), resume=True)
    restored = replace(_of(home, "restored", plan, theirs), saved=saved)
    machines.start(restored)
    for each in (plan, *others, restored):
        machines.verify(each)
