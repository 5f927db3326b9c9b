"""What holds for every virtio device behind its transport, and what each does."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer
from tests.devices.registry import VIRTIO

from cerne.devices.block.chain import open_chain
from cerne.devices.block.raw import RawDisk
from cerne.devices.limiter import Limiter
from cerne.devices.vhost_user.device import VhostUserDevice
from cerne.devices.virtio.block import BlockDevice
from cerne.devices.virtio.console import PORT_NAME, PORT_OPEN, ConsoleDevice, Port
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.net.device import NetDevice
from cerne.devices.virtio.queue import QueueError
from cerne.devices.virtio.rng import RngDevice
from cerne.devices.virtio.vsock.device import VsockDevice
from cerne.errors import DamagedError, InputError
from cerne.kvm.memory import GuestMemory
from cerne.storage.overlay import chain, create_overlay

DATA = 0x80000


@pytest.fixture(params=VIRTIO)
def make(request: pytest.FixtureRequest) -> Callable[[], VirtioDevice]:
    return VIRTIO[request.param]


def test_a_device_is_what_its_state_says(
    make: Callable[[], VirtioDevice], memory: GuestMemory
) -> None:
    guest = Guest(make(), memory)
    before = guest.transport.state()
    guest.start()
    running = guest.transport.state()
    other = Guest(make(), memory)
    other.transport.restore(running)
    assert other.transport.state() == running != before
    other.transport.restore(before)
    assert other.transport.state() == before
    for name in running:
        with pytest.raises(DamagedError):
            other.transport.restore({key: running[key] for key in running if key != name})


def test_random_accesses_do_no_harm(make: Callable[[], VirtioDevice], memory: GuestMemory) -> None:
    numbers = random.Random(7)
    guest = Guest(make(), memory)
    for step in range(4000):
        if step % 500 == 0:
            guest.write(20, 1, 0)
            guest.queues.clear()
            guest.start()
        size = numbers.choice((1, 2, 4, 8))
        offset = numbers.choice((numbers.randrange(64), numbers.randrange(0x10000 // 8) * 8))
        value = numbers.getrandbits(8 * size)
        guest.write(offset, size, value)
        assert 0 <= guest.read(offset, size) < 1 << 8 * size
        place, width = numbers.randrange(256), numbers.choice((1, 2, 4))
        guest.transport.write_config(place, width, value & (1 << 8 * width) - 1)
        assert 0 <= guest.transport.read_config(place, width) < 1 << 8 * width


@pytest.mark.parametrize("kind", [kind for kind in VIRTIO if not issubclass(kind, VhostUserDevice)])
def test_a_broken_queue_makes_the_device_ask_for_a_reset(
    kind: type[VirtioDevice], memory: GuestMemory
) -> None:
    guest = Guest(VIRTIO[kind](), memory)
    guest.start()
    broken = 1 if isinstance(guest.transport.device, ConsoleDevice | NetDevice | VsockDevice) else 0
    guest.queues[broken].offer(99)
    guest.kick(broken)
    assert guest.read(20, 1) & 64
    assert "99" in str(guest.transport.failure)
    guest.write(20, 1, 0)
    assert (guest.read(20, 1), guest.transport.failure) == (0, None)


def test_features_that_are_not_offered_are_refused(
    make: Callable[[], VirtioDevice], memory: GuestMemory
) -> None:
    guest = Guest(make(), memory)
    offered = guest.transport.offered
    for bit in range(64):
        features = offered | 1 << bit
        guest.write(20, 1, 0)
        guest.write(20, 1, 3)
        for select in (0, 1):
            guest.write(8, 4, select)
            guest.write(12, 4, features >> 32 * select & 0xFFFFFFFF)
        guest.write(20, 1, 15 if features != offered else 11)
        assert guest.read(20, 1) == (3 if features != offered else 11)


def test_rng_fills_what_is_offered(memory: GuestMemory) -> None:
    guest = Guest(RngDevice(), memory)
    guest.start()
    head = guest.queues[0].add([Buffer(DATA, 32, write=True)])
    guest.kick(0)
    assert guest.queues[0].take() == [(head, 32)]
    assert memory.read(DATA, 32) != bytes(32)
    assert (guest.read(0x1000, 1), guest.read(0x1000, 1)) == (1, 0)


def request(
    guest: Guest, kind: int, sector: int, out: bytes = b"", room: int = 0
) -> tuple[int, bytes]:
    """Serve one block request; its status and what was read."""
    memory = guest.memory
    memory.write(DATA, struct.pack("<IIQ", kind, 0, sector) + out)
    memory.write(DATA + 0x10000 + room, b"\xff")
    # The header is cut in two, as a driver may do.
    buffers = [Buffer(DATA, 7), Buffer(DATA + 7, 9 + len(out))]
    guest.queues[0].add([*buffers, Buffer(DATA + 0x10000, room + 1, write=True)])
    guest.kick(0)
    assert len(guest.queues[0].take()) == 1
    answer = memory.read(DATA + 0x10000, room + 1)
    return answer[-1], answer[:-1]


@pytest.fixture
def disk(memory: GuestMemory, tmp_path: Path) -> Guest:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 32)
    guest = Guest(BlockDevice(RawDisk(os.open(path, os.O_RDWR)), serial="serial-1"), memory)
    guest.start()
    return guest


def test_a_disk_reads_writes_and_says_its_name(disk: Guest) -> None:
    assert request(disk, 1, 2, b"x" * 512) == (0, b"")
    assert request(disk, 0, 2, room=1024) == (0, b"x" * 512 + bytes(range(256)) * 2)
    assert request(disk, 4, 0) == (0, b"")
    assert request(disk, 8, 0, room=20) == (0, b"serial-1".ljust(20, b"\0"))
    assert disk.read(0x2000, 8) == 16
    device = disk.transport.device
    assert isinstance(device, BlockDevice)
    # Only what was done is counted.
    assert request(disk, 0, 1 << 40, room=512)[0] == 1
    counts = device.counts
    assert (counts.reads, counts.writes, counts.read, counts.written) == (1, 1, 1024, 512)


def test_a_disk_goes_on_in_an_overlay(disk: Guest, tmp_path: Path) -> None:
    """As it does when its machine is forked: what is written then is not in the file before."""
    device = disk.transport.device
    assert isinstance(device, BlockDevice)
    assert request(disk, 1, 2, b"x" * 512) == (0, b"")
    before = tmp_path / "disk"
    overlay = tmp_path / "overlay.qcow2"
    create_overlay(before, "raw", overlay)
    files = [(os.open(path, os.O_RDWR), form) for path, form in chain(overlay, "qcow2")]
    former = device.replace(open_chain(files, read_only=False))
    frozen = before.read_bytes()
    assert request(disk, 1, 3, b"y" * 512) == (0, b"")
    assert request(disk, 0, 2, room=1024) == (0, b"x" * 512 + b"y" * 512)
    former.close()
    assert before.read_bytes() == frozen
    with pytest.raises(InputError, match="the new disk has"):
        device.replace(RawDisk(os.memfd_create("smaller")))


@pytest.mark.parametrize("kind", [11, 13])
@pytest.mark.parametrize("flags", [0, 1])
def test_a_disk_forgets_ranges(disk: Guest, kind: int, flags: int) -> None:
    wiped = struct.pack("<QII", 4, 2, flags)
    assert request(disk, kind, 0, wiped)[0] == 0
    assert request(disk, 0, 4, room=1024) == (0, bytes(1024))
    assert request(disk, 0, 6, room=512)[1] == bytes(range(256)) * 2


@pytest.mark.parametrize(
    ("kind", "sector", "out", "room", "status"),
    [
        (0, 16, b"", 512, 1),
        (0, (1 << 64) - 1, b"", 512, 1),
        (0, 0, b"", 100, 1),
        (1, 15, b"x" * 1024, 0, 1),
        (11, 0, struct.pack("<QII", 15, 2, 0), 0, 1),
        (11, 0, b"short", 0, 1),
        (13, 0, struct.pack("<QII", 0, 1 << 31, 0), 0, 2),
        (99, 0, b"", 0, 2),
    ],
)
def test_a_disk_refuses(
    disk: Guest, kind: int, sector: int, out: bytes, room: int, status: int
) -> None:
    assert request(disk, kind, sector, out, room)[0] == status


def test_ports_are_introduced_and_carry_bytes(memory: GuestMemory) -> None:
    got: list[bytes] = []
    limit = [2]

    def sink(data: bytes) -> int:
        got.append(data[: limit[0]])
        return len(got[-1])

    device = ConsoleDevice([Port("", True, len), Port("org.cerne.agent.0", False, sink)])
    guest = Guest(device, memory)
    guest.start()
    control_in, control_out = guest.queues[2], guest.queues[3]
    for step in range(8):
        control_in.add([Buffer(DATA + 64 * step, 64, write=True)])
    for step, (port, event) in enumerate(((0, 0), (1, 3), (9, 3), (1, PORT_OPEN))):
        memory.write(DATA + 0x1000 + 8 * step, struct.pack("<IHH", port, event, 1))
        control_out.add([Buffer(DATA + 0x1000 + 8 * step, 8)])
    guest.kick(3)
    device.open(1)
    messages = [
        memory.read(DATA + 64 * at, length) for at, (_, length) in enumerate(control_in.take())
    ]
    assert messages == [
        struct.pack("<IHH", 0, 1, 1),
        struct.pack("<IHH", 1, 1, 1),
        struct.pack("<IHH", 1, PORT_NAME, 1) + b"org.cerne.agent.0",
        struct.pack("<IHH", 1, PORT_OPEN, 1),
    ]
    assert device.guest_open(1)
    assert device.feed(1, b"hello") == 0
    guest.queues[4].add([Buffer(DATA + 0x2000, 3, write=True)])
    assert device.feed(1, b"hello") == 3
    assert memory.read(DATA + 0x2000, 3) == b"hel"
    memory.write(DATA + 0x3000, b"answer")
    head = guest.queues[5].add([Buffer(DATA + 0x3000, 6)])
    guest.kick(5)
    assert guest.queues[5].take() == []
    limit[0] = 100
    device.resume(1)
    assert (got, guest.queues[5].take()) == ([b"an", b"swer"], [(head, 0)])


@dataclass
class _RefillingDisk:
    """A disk whose guest offers another request whenever one is served."""

    size: int = 512 * 1024
    refill: Callable[[], None] = lambda: None
    reads: int = 0

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        self.reads += 1
        self.refill()

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Nothing is kept."""

    def flush(self) -> None:
        """Nothing is kept."""

    def discard(self, offset: int, length: int) -> None:
        """Nothing is kept."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


def test_a_queue_that_refills_itself_lets_others_have_their_turn(memory: GuestMemory) -> None:
    disk = _RefillingDisk()
    guest = Guest(BlockDevice(disk), memory, [os.eventfd(0, os.EFD_NONBLOCK)])
    guest.start()
    head = guest.queues[0].add([Buffer(DATA, 16), Buffer(DATA + 16, 513, write=True)])
    disk.refill = lambda: guest.queues[0].offer(head)
    guest.kick(0)
    assert guest.rung() == 1
    assert 0 < disk.reads <= 17
    guest.kick(0)
    assert guest.rung() == 1
    disk.refill = lambda: None
    guest.kick(0)
    assert guest.rung() == 0


class _Timers:
    """Functions that are called after a while, which the test ends."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._actions: list[Callable[[], None]] = []

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self.waits.append(seconds)
        self._actions.append(action)

    def run(self) -> None:
        actions, self._actions = self._actions, []
        for action in actions:
            action()


def test_requests_of_a_disk_wait_for_its_limit(memory: GuestMemory) -> None:
    limiter, timers, disk = Limiter(), _Timers(), _RefillingDisk()
    device = BlockDevice(disk, limiter=limiter)
    device.wait_with(timers.after)
    guest = Guest(device, memory, [os.eventfd(0, os.EFD_NONBLOCK)])
    guest.start()
    limiter.set(requests=1)
    heads = [
        guest.queues[0].add([Buffer(DATA, 16), Buffer(DATA + 16, 513, write=True)])
        for _ in range(3)
    ]
    guest.kick(0)
    assert guest.queues[0].take() == [(heads[0], 513)]
    assert 0 < timers.waits[0] <= 1
    # Its kicks make no more timers, and no request is lost or served early.
    guest.kick(0)
    assert (guest.rung(), len(timers.waits), disk.reads) == (0, 1, 1)
    timers.run()
    assert guest.rung() == 1
    guest.kick(0)
    assert (guest.queues[0].take(), len(timers.waits)) == ([], 2)
    # A change of the limit lets it try again at once.
    limiter.set()
    device.limit_changed()
    assert guest.rung() == 1
    guest.kick(0)
    assert guest.queues[0].take() == [(heads[1], 513), (heads[2], 513)]
    timers.run()


def test_a_write_of_zeros_counts_with_what_it_writes(memory: GuestMemory) -> None:
    limiter, timers = Limiter(), _Timers()
    device = BlockDevice(_RefillingDisk(), limiter=limiter)
    device.wait_with(timers.after)
    guest = Guest(device, memory, [os.eventfd(0, os.EFD_NONBLOCK)])
    guest.start()
    limiter.set(size=1024)
    memory.write(DATA, struct.pack("<IIQQII", 13, 0, 0, 0, 512, 0))
    for _ in range(2):
        guest.queues[0].add([Buffer(DATA, 32), Buffer(DATA + 64, 1, write=True)])
    guest.kick(0)
    assert len(guest.queues[0].take()) == 1
    assert timers.waits[0] > 200


def _during_a_request(memory: GuestMemory, action: Callable[[Guest], None]) -> Guest:
    """A disk that served a request, during which another thread did something."""
    disk = _RefillingDisk()
    guest = Guest(BlockDevice(disk), memory, [os.eventfd(0, os.EFD_NONBLOCK)])
    guest.start()
    for _ in range(2):
        guest.queues[0].add([Buffer(DATA, 16), Buffer(DATA + 16, 513, write=True)])

    def act() -> None:
        other = threading.Thread(target=action, args=(guest,))
        other.start()
        other.join(20)
        assert not other.is_alive()

    disk.refill = act
    guest.kick(0)
    assert disk.reads == 1
    return guest


def test_a_reset_is_done_after_the_request_in_progress(memory: GuestMemory) -> None:
    def reset(guest: Guest) -> None:
        guest.write(20, 1, 0)
        assert guest.read(20, 1) == 15
        # The driver must not do that before the reset is done.
        guest.write(22, 2, 0)
        guest.write(20, 1, 15)
        assert guest.queues[0].take() == []

    guest = _during_a_request(memory, reset)
    assert guest.read(20, 1) == 0
    assert guest.queues[0].take() == [(0, 513)]
    assert not guest.transport.device.active
    guest.queues.clear()
    guest.start()
    assert guest.read(20, 1) == 15


def test_a_queue_is_reset_after_its_request_in_progress(memory: GuestMemory) -> None:
    def reset(guest: Guest) -> None:
        guest.write(22, 2, 0)
        guest.write(58, 2, 1)
        assert guest.read(58, 2) == 1
        assert guest.read(28, 2) == 1

    guest = _during_a_request(memory, reset)
    assert (guest.read(58, 2), guest.read(28, 2), guest.read(20, 1)) == (0, 0, 15)
    assert guest.queues[0].take() == [(0, 513)]


def test_a_device_that_fails_during_a_request_serves_no_other(memory: GuestMemory) -> None:
    def fail(guest: Guest) -> None:
        guest.transport.failed(QueueError("the driver broke a rule"))

    guest = _during_a_request(memory, fail)
    assert guest.read(20, 1) == 15 | 64
    guest.kick(0)
    assert guest.queues[0].take() == [(0, 513)]


def test_a_device_that_failed_is_not_started_by_its_old_driver(memory: GuestMemory) -> None:
    guest = Guest(RngDevice(), memory)
    guest.write(20, 1, 3)
    guest.write(8, 4, 1)
    guest.write(12, 4, 1)
    guest.write(20, 1, 11)
    guest.write(24, 2, 3)
    guest.write(28, 2, 1)
    guest.write(20, 1, 15)
    assert guest.read(20, 1) == 15 | 64
    assert not guest.transport.device.active
    again = Guest(RngDevice(), memory)
    again.transport.restore(guest.transport.state())
    assert not again.transport.device.active
    assert again.transport.state() == guest.transport.state()
