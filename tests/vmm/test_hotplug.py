"""Disks and network cards that come and go: a machine's process, and its devices in this one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.descriptors import open_descriptors
from tests.guests.harness import Running, running
from tests.processes import opened_files
from tests.waiting import PATIENCE

from cerne.arch.x86 import layout
from cerne.devices.pci.function import COMMAND, COMMAND_MEMORY
from cerne.devices.state import plain
from cerne.devices.virtio.transport import BAR_SIZE, TABLE
from cerne.engine.opened import Opened
from cerne.engine.qmp import QmpClient
from cerne.errors import ConflictError, DamagedError, EngineError, NotFoundError
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.units import MIB
from cerne.vmm.board import Board, GuestRequests
from cerne.vmm.config import BootConfig, DiskConfig, FileConfig, NicConfig, VmmConfig
from cerne.vmm.loop import Loop
from cerne.vmm.peripherals import Peripherals

# Port 0x614 says which slots are asked back, 0x618 ejects, 0x61c refuses (0x81: it is busy).
_EJECTS = bytes.fromhex("66ba1406 ed 85c0 74f7 66ba1806 ef ebf0")
_REFUSES_SLOT_24 = bytes.fromhex("66ba1406 ed 85c0 74f7 66ba1c06 b818810000 ef ebeb")
_EJECTS_UNASKED = bytes.fromhex("66ba1806 b8ffffffff ef ebfd")
_LOOP = bytes.fromhex("ebfe")

Run = Callable[[bytes], contextlib.AbstractContextManager[Running]]


@pytest.fixture
def run(home: Path, small_kernel: Callable[[Path, bytes], Path]) -> Run:
    """Runs a VMM with a guest that is nothing but this code."""
    return lambda code: running(home, small_kernel(home / "kernel", code))


def _plug_disk(client: QmpClient, path: Path, slot: int) -> None:
    with Opened(sent=True) as opened:
        disk = DiskConfig(
            (FileConfig(opened.existing(path, writable=True), "raw"),), "s", slot=slot
        )
        client.execute("cerne-plug-disk", plain(disk), descriptors=opened.descriptors)


def _devices(client: QmpClient) -> object:
    return client.execute("cerne-query-devices")


def _opened(machine: Running) -> list[str]:
    """What a machine's process has open, without sockets."""
    return opened_files(machine.process.pid)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(MIB))
    return path


def test_a_guest_lets_go_of_a_disk(run: Run, kvm_device: Path, disk: Path) -> None:
    with run(_EJECTS) as machine, QmpClient(machine.qmp) as client:
        client.status()
        before = _opened(machine)
        _plug_disk(client, disk, 0)
        assert _devices(client) == [{"id": "hot0", "slot": 0}]
        assert str(disk) in _opened(machine)
        with pytest.raises(EngineError, match="already"):
            _plug_disk(client, disk, 0)
        client.execute("device_del", {"id": "hot0"})
        event = client.wait_event("DEVICE_DELETED", timeout=PATIENCE)
        assert event.data == {"device": "hot0"}
        assert _devices(client) == []
        assert _opened(machine) == before


def test_a_reset_leaves_it_plugged_in(run: Run, kvm_device: Path, disk: Path) -> None:
    with run(_EJECTS) as machine, QmpClient(machine.qmp) as client:
        client.status()
        before = _opened(machine)
        _plug_disk(client, disk, 0)
        _plug_disk(client, disk, 7)
        client.execute("cerne-pull-device", {"id": "hot0"})
        client.execute("system_reset")
        client.wait_event("RESET", timeout=PATIENCE)
        assert _devices(client) == [{"id": "hot7", "slot": 7}]
        client.execute("device_del", {"id": "hot7"})
        assert client.wait_event("DEVICE_DELETED", timeout=PATIENCE).data == {"device": "hot7"}
        assert _opened(machine) == before


def test_a_guest_refuses(run: Run, kvm_device: Path, disk: Path) -> None:
    with run(_REFUSES_SLOT_24) as machine, QmpClient(machine.qmp) as client:
        _plug_disk(client, disk, 0)
        client.execute("device_del", {"id": "hot0"})
        event = client.wait_event("DEVICE_UNPLUG_GUEST_ERROR", timeout=PATIENCE)
        assert event.data["device"] == "hot0"
        assert _devices(client) == [{"id": "hot0", "slot": 0}]


def test_what_is_not_asked_back_stays(run: Run, kvm_device: Path, disk: Path) -> None:
    with run(_EJECTS_UNASKED) as machine, QmpClient(machine.qmp) as client:
        _plug_disk(client, disk, 3)
        for _ in range(20):
            assert _devices(client) == [{"id": "hot3", "slot": 3}]
        client.execute("cerne-pull-device", {"id": "hot3"})
        assert _devices(client) == []


def test_a_guest_that_does_not_answer_keeps_it(run: Run, kvm_device: Path, disk: Path) -> None:
    with run(_LOOP) as machine, QmpClient(machine.qmp) as client:
        _plug_disk(client, disk, 0)
        client.execute("device_del", {"id": "hot0"})
        client.execute("cerne-keep-device", {"id": "hot0"})
        assert _devices(client) == [{"id": "hot0", "slot": 0}]
        client.execute("cerne-pull-device", {"id": "hot0"})
        assert client.wait_event("DEVICE_DELETED", timeout=PATIENCE).data == {"device": "hot0"}
        for name in ("hot0", "hot8", "hot-1", "vda", "hot"):
            with pytest.raises(EngineError) as refused:
                client.execute("device_del", {"id": name})
            assert getattr(refused.value, "error_class", "") == "DeviceNotFound"
        for slot in (8, None, "x"):
            with pytest.raises(EngineError):
                client.execute("cerne-plug-disk", {"files": [], "serial": "", "slot": slot})
        assert client.status() == "running"


def _nothing() -> None:
    """Nobody cares for what the guest wishes."""


class Bench:
    """A machine's devices with nobody in it: the test is the guest, by its buses."""

    def __init__(self, kvm: Kvm, memory: GuestMemory, disk: Path) -> None:
        wishes = GuestRequests(
            power_off=_nothing,
            reset=_nothing,
            panicked=_nothing,
            crash_loaded=_nothing,
            console=lambda data: None,
        )
        self.loop = Loop()
        self.board = Board(kvm, memory, 1, wishes)
        self.events: list[str] = []
        config = VmmConfig("bench", "", 1, memory.size, BootConfig(0, None, ""), 0, 0, 0, (), 0)
        self.devices = Peripherals(self.board, self.loop, config, self._emit)
        self._disk = disk

    def _emit(self, event: str, data: Mapping[str, object]) -> None:
        self.events.append(f"{event} {data['device']}")

    def disk(self, slot: int) -> None:
        file = FileConfig(os.open(self._disk, os.O_RDWR | os.O_CLOEXEC), "raw")
        self.devices.plug_disk(DiskConfig((file,), "s", slot=slot))

    def nic(self, slot: int) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.devices.plug_nic(NicConfig("02:00:00:00:00:01", ours.detach(), slot=slot))
        return theirs

    def configure(self, slot: int, register: int, value: int) -> None:
        place = layout.FIRST_HOTPLUG_SLOT + slot
        self.board.buses.memory.write(layout.ECAM_START + (place << 15 | register), 4, value)

    def read(self, slot: int, register: int) -> int:
        place = layout.FIRST_HOTPLUG_SLOT + slot
        return self.board.buses.memory.read(layout.ECAM_START + (place << 15 | register), 4)

    def capability(self, slot: int, wanted: int) -> int:
        at = self.read(slot, 0x34) & 0xFF
        while at and self.read(slot, at) & 0xFF != wanted:
            at = self.read(slot, at) >> 8 & 0xFF
        return at

    def answer_loop(self) -> None:
        """Let the loop do what it was asked."""
        self.loop.ask(self.loop.stop)
        self.loop.run()
        self.loop._running = True

    def close(self) -> None:
        self.devices.abandon()
        self.board.close()
        self.loop.close()


@pytest.fixture
def bench(kvm_device: Path, disk: Path) -> Iterator[Bench]:
    with Kvm() as kvm, GuestMemory.anonymous(layout.memory_ranges(16 * MIB)) as memory:
        made = Bench(kvm, memory, disk)
        yield made
        made.close()


@pytest.mark.slow
def test_a_thousand_cycles_leave_nothing(bench: Bench) -> None:
    def cycle(plug: Callable[[], socket.socket | None]) -> None:
        far = plug()
        bench.configure(2, COMMAND, COMMAND_MEMORY)
        bench.configure(2, bench.capability(2, 0x11), 1 << 31)
        bar = bench.read(2, 0x10) & ~0xF
        for vector in range(2):
            entry = bar + TABLE + 16 * vector
            for offset, value in ((0, 0xFEE00000), (8, 0x41), (12, 0)):
                bench.board.buses.memory.write(entry + offset, 4, value)
        bench.devices.slots.ask_back(2)
        bench.board.buses.ports.write(layout.HOTPLUG_PORT + 8, 4, 1 << 26)
        bench.answer_loop()
        assert bench.devices.slots.taken == []
        if far is not None:
            far.close()

    cycle(lambda: bench.disk(2))
    cycle(lambda: bench.nic(2))
    before = open_descriptors()
    ranges = list(bench.board.buses.memory._map[1])
    for _ in range(500):
        cycle(lambda: bench.disk(2))
        cycle(lambda: bench.nic(2))
    assert open_descriptors() == before
    assert bench.board.buses.memory._map[1] == ranges
    assert len(bench.events) == 1002
    # The kernel's table of routes is no longer than that of one device.
    interrupts = bench.devices._pci._interrupts
    assert (interrupts._messages, interrupts._next) == ({}, 24 + 2)


def test_what_is_restored_has_the_same_devices_in_the_same_slots(bench: Bench, disk: Path) -> None:
    bench.disk(5)
    bench.nic(1).close()
    bench.devices.slots.ask_back(5)
    state = bench.devices.state()
    with pytest.raises(ConflictError):
        bench.disk(5)
    bench.devices.slots.pull(5)
    with pytest.raises(NotFoundError):
        bench.devices.slots.pull(5)
    with pytest.raises(DamagedError):
        bench.devices.restore(state)
    bench.disk(5)
    bench.devices.restore(state)
    assert bench.devices.state() == state
    file = FileConfig(os.open(disk, os.O_RDWR | os.O_CLOEXEC), "raw")
    with pytest.raises(DamagedError, match="for other slots"):
        bench.devices.switch_disks((DiskConfig((file,), "s", slot=4),))
    (former,) = bench.devices.switch_disks((DiskConfig((file,), "s", slot=5),))
    former.close()


_STEPS = st.one_of(
    st.tuples(st.sampled_from(("disk", "nic", "pull", "ask", "keep")), st.integers(0, 7)),
    st.tuples(
        st.just("configure"),
        st.integers(0, 7),
        st.sampled_from((COMMAND, 0x10, 0x40, 0x98)),
        st.one_of(
            st.sampled_from((2, 1 << 31, 0xFFFFFFFF, layout.ECAM_START, layout.LAPIC)),
            st.integers(0, 20).map(lambda at: layout.PCI_WINDOW_START + at * BAR_SIZE),
        ),
    ),
    st.tuples(st.just("port"), st.integers(0, 15), st.sampled_from((1, 2, 4)), st.integers(0)),
    st.tuples(st.just("memory"), st.integers(0, 32 * BAR_SIZE), st.integers(0, 1 << 32)),
)


@settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.lists(_STEPS, max_size=40))
def test_no_guest_and_no_plug_breaks_the_bus(bench: Bench, steps: list[tuple[object, ...]]) -> None:
    before = open_descriptors()
    ranges = len(bench.board.buses.memory._map[1])
    far: list[socket.socket] = []
    for step in steps:
        match step:
            case ("disk", int(slot)) if slot not in bench.devices.slots.taken:
                bench.disk(slot)
            case ("nic", int(slot)) if slot not in bench.devices.slots.taken:
                far.append(bench.nic(slot))
            case ("pull", int(slot)) if slot in bench.devices.slots.taken:
                bench.devices.slots.pull(slot)
            case ("ask", int(slot)) if slot in bench.devices.slots.taken:
                bench.devices.slots.ask_back(slot)
            case ("keep", int(slot)) if slot in bench.devices.slots.taken:
                bench.devices.slots.keep(slot)
            case ("configure", int(slot), int(register), int(value)):
                bench.configure(slot, register, value)
            case ("port", int(offset), int(size), int(value)):
                mask = (1 << 8 * size) - 1
                bench.board.buses.ports.write(layout.HOTPLUG_PORT + offset, size, value & mask)
                bench.board.buses.ports.read(layout.HOTPLUG_PORT + offset, size)
            case ("memory", int(offset), int(value)):
                place = layout.PCI_WINDOW_START + offset
                bench.board.buses.memory.write(place, 4, value & 0xFFFFFFFF)
                bench.board.buses.memory.read(place, 4)
        bench.answer_loop()
    for slot in bench.devices.slots.taken:
        bench.devices.slots.pull(slot)
    for end in far:
        end.close()
    assert open_descriptors() == before
    assert len(bench.board.buses.memory._map[1]) == ranges
    assert bench.devices._pci._interrupts._messages == {}
