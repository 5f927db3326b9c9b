"""The memory device: what a driver plugs and unplugs, and what it is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer

from cerne.devices.virtio.mem import Answer, BlockState, MemDevice, Request
from cerne.devices.virtio.transport import STATUS_NEEDS_RESET
from cerne.errors import HostError
from cerne.kvm.memory import BLOCK_SIZE, GuestAddress, GuestMemory, GuestMemoryError
from cerne.units import GIB, MIB

_START = 4 * GIB
_BLOCKS = 4
_REQUEST, _RESPONSE = 0x10000, 0x10100


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.anonymous([(GuestAddress(0), MIB)]) as made:
        made.reserve(GuestAddress(_START), _BLOCKS * BLOCK_SIZE)
        yield made


class _Driver(Guest):
    """A driver of the device, as honest as a test wants it."""

    def __init__(self, memory: GuestMemory) -> None:
        self.slots: set[int] = set()
        self.full = False
        self.changes = 0
        self.device = MemDevice(memory, self._plug, self._unplug, self._changed)
        super().__init__(self.device, memory)
        self.start()

    def _plug(self, block: int) -> None:
        if self.full and self.slots:
            raise HostError("no slot is left")
        self.memory.plug(block)
        self.slots.add(block)

    def _unplug(self, block: int) -> None:
        self.memory.unplug(block)
        self.slots.remove(block)

    def _changed(self) -> None:
        self.changes += 1

    def ask(self, kind: int, block: float = 0, count: int = 1) -> tuple[int, int]:
        """The answer to a request about blocks, and the state in it."""
        address = int(_START + block * BLOCK_SIZE) % (1 << 64)
        self.memory.write(_REQUEST, struct.pack("<H6xQH6x", kind, address, count))
        self.memory.write(_RESPONSE, bytes([0xEE] * 10))
        self.queues[0].add([Buffer(_REQUEST, 24), Buffer(_RESPONSE, 10, True)])
        self.kick(0)
        answer, state = struct.unpack("<H6xH", self.memory.read(_RESPONSE, 10))
        return answer, state

    @property
    def refused(self) -> bool:
        return bool(self.transport.status & STATUS_NEEDS_RESET)


@pytest.fixture
def driver(memory: GuestMemory) -> _Driver:
    return _Driver(memory)


def _config(driver: _Driver) -> tuple[int, ...]:
    return struct.unpack("<QH6xQQQQQ", driver.device.config())


def test_it_plugs_what_is_requested_and_no_more(driver: _Driver, memory: GuestMemory) -> None:
    assert driver.ask(Request.PLUG) == (Answer.NACK, 0)
    driver.device.request(2 * BLOCK_SIZE)
    room = _BLOCKS * BLOCK_SIZE
    assert _config(driver) == (BLOCK_SIZE, 0, _START, room, room, 0, 2 * BLOCK_SIZE)
    assert driver.ask(Request.PLUG, 1, 2) == (Answer.ACK, 0)
    assert driver.ask(Request.PLUG, 0) == (Answer.NACK, 0)
    assert driver.slots == memory.plugged == {1, 2}
    assert memory.size == MIB + 2 * BLOCK_SIZE
    assert _config(driver)[5] == driver.device.plugged == 2 * BLOCK_SIZE
    assert driver.changes == 1


def test_plugged_memory_is_one_range_and_all_else_is_not_memory(
    driver: _Driver, memory: GuestMemory
) -> None:
    driver.device.request(2 * BLOCK_SIZE)
    driver.ask(Request.PLUG, 0, 2)
    edge = _START + BLOCK_SIZE
    memory.write(edge - 4, b"inputout")
    assert memory.read(edge - 4, 8) == b"inputout"
    for address in (_START - 4, _START + 2 * BLOCK_SIZE - 4):
        with pytest.raises(GuestMemoryError):
            memory.read(address, 8)
    assert driver.ask(Request.UNPLUG, 0) == (Answer.ACK, 0)
    with pytest.raises(GuestMemoryError):
        memory.read(_START, 1)
    with pytest.raises(GuestMemoryError):
        memory.discard(_START, 4096)
    driver.ask(Request.PLUG, 0)
    assert memory.read(edge - 4, 8) == bytes(4) + b"tout"


def test_it_says_what_is_plugged(driver: _Driver) -> None:
    driver.device.request(BLOCK_SIZE)
    driver.ask(Request.PLUG, 1)
    assert driver.ask(Request.STATE, 1) == (Answer.ACK, BlockState.PLUGGED)
    assert driver.ask(Request.STATE, 2, 2) == (Answer.ACK, BlockState.UNPLUGGED)
    assert driver.ask(Request.STATE, 0, 4) == (Answer.ACK, BlockState.MIXED)


def test_it_gives_back(driver: _Driver, memory: GuestMemory) -> None:
    driver.device.request(4 * BLOCK_SIZE)
    driver.ask(Request.PLUG, 0, 4)
    driver.device.request(0)
    assert driver.ask(Request.UNPLUG, 3) == (Answer.ACK, 0)
    assert driver.ask(Request.UNPLUG, 2, 2) == (Answer.ERROR, 0)
    assert memory.plugged == {0, 1, 2}
    assert driver.ask(Request.UNPLUG_ALL) == (Answer.ACK, 0)
    assert (memory.plugged, driver.slots, memory.size) == (frozenset(), set(), MIB)


@pytest.mark.parametrize("kind", [Request.PLUG, Request.UNPLUG, Request.STATE, 4, 0xFFFF])
@pytest.mark.parametrize(
    ("block", "count"), [(0, 0), (-1, 1), (0, 5), (4, 1), (0.5, 1), (1 << 30, 1), (3, 0xFFFF)]
)
def test_ranges_outside_of_it_are_errors(
    driver: _Driver, memory: GuestMemory, kind: int, block: float, count: int
) -> None:
    driver.device.request(4 * BLOCK_SIZE)
    assert driver.ask(kind, block, count) == (Answer.ERROR, 0)
    assert memory.plugged == frozenset()
    assert not driver.refused


def test_unknown_requests_and_repeated_ones_are_errors(driver: _Driver) -> None:
    driver.device.request(4 * BLOCK_SIZE)
    assert driver.ask(9) == (Answer.ERROR, 0)
    assert driver.ask(Request.PLUG, 1) == (Answer.ACK, 0)
    assert driver.ask(Request.PLUG, 0, 2) == (Answer.ERROR, 0)
    assert driver.ask(Request.UNPLUG, 0) == (Answer.ERROR, 0)


def test_a_request_is_done_wholly_or_not_at_all(driver: _Driver, memory: GuestMemory) -> None:
    driver.device.request(4 * BLOCK_SIZE)
    driver.full = True
    assert driver.ask(Request.PLUG, 0, 3) == (Answer.BUSY, 0)
    assert memory.plugged == driver.slots == set()
    assert driver.changes == 0


def test_a_request_that_is_too_short_is_refused(driver: _Driver) -> None:
    driver.queues[0].add([Buffer(_REQUEST, 23), Buffer(_RESPONSE, 10, True)])
    driver.kick(0)
    assert driver.refused


def test_a_reset_of_the_device_unplugs_nothing_and_a_power_cycle_all(
    driver: _Driver, memory: GuestMemory
) -> None:
    driver.device.request(BLOCK_SIZE)
    driver.ask(Request.PLUG)
    memory.write(_START, b"old")
    driver.transport.reset()
    assert memory.plugged == {0}
    memory.clear()
    assert memory.plugged == frozenset()
    assert driver.device.requested == BLOCK_SIZE
    driver.queues.clear()
    driver.start()
    driver.ask(Request.PLUG)
    assert memory.read(_START, 3) == bytes(3)
