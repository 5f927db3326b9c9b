"""The balloon: what is given back, what is refused, what the guest tells of its memory."""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer

from cerne.devices.virtio.balloon import (
    DEFLATE,
    INFLATE,
    LARGEST_LIST,
    STATISTIC_NAMES,
    STATISTICS,
    BalloonDevice,
)
from cerne.devices.virtio.transport import ISR, ISR_CONFIG, STATUS_NEEDS_RESET
from cerne.kvm.memory import PAGE_SIZE, GuestAddress, GuestMemory
from cerne.units import MIB

_SIZE = MIB
# The pages from here on have nothing in them that the driver needs.
_FREE = 64
_PAGES = _SIZE // PAGE_SIZE
_LIST = 0x10000


def _ranges() -> list[tuple[GuestAddress, int]]:
    """Two regions that follow one another: a range may lie in both."""
    return [(GuestAddress(0), _SIZE // 2), (GuestAddress(_SIZE // 2), _SIZE // 2)]


@pytest.fixture(params=("anonymous", "shared", "private file"))
def memory(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    """A MiB of each kind, every page with something in it."""
    if request.param == "anonymous":
        made = GuestMemory.anonymous(_ranges())
    elif request.param == "shared":
        made = GuestMemory.shared(_ranges())
    else:
        file = os.memfd_create("saved")
        os.truncate(file, _SIZE)
        made = GuestMemory.private_file(_ranges(), file)
        os.close(file)
    with made as memory:
        for page in range(_PAGES):
            memory.write(page * PAGE_SIZE, b"\xa5")
        yield memory


class _Driver(Guest):
    """A driver of a balloon, as honest as a test wants it."""

    def __init__(self, memory: GuestMemory, on_change: Callable[[], None] = lambda: None) -> None:
        self.device = BalloonDevice(memory, on_change)
        super().__init__(self.device, memory)
        self.start()

    def send(self, queue: int, data: bytes) -> None:
        self.memory.write(_LIST, data)
        self.queues[queue].add([Buffer(_LIST, len(data))])
        self.kick(queue)

    def send_pages(self, queue: int, *numbers: int) -> None:
        self.send(queue, struct.pack(f"<{len(numbers)}I", *numbers))

    def config(self) -> tuple[int, int]:
        return self.read(0x2000, 4), self.read(0x2004, 4)

    @property
    def refused(self) -> bool:
        return bool(self.transport.status & STATUS_NEEDS_RESET)


def _given_back(memory: GuestMemory) -> set[int]:
    return {page for page in range(_FREE, _PAGES) if memory.read(page * PAGE_SIZE, 1) == b"\0"}


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the ranges that the kernel was given back."""
    sizes: list[int] = []
    plain = GuestMemory.discard

    def discard(memory: GuestMemory, address: int, length: int) -> None:
        sizes.append(length)
        plain(memory, address, length)

    monkeypatch.setattr(GuestMemory, "discard", discard)
    return sizes


def test_inflated_pages_are_given_back_as_ranges(memory: GuestMemory, advised: list[int]) -> None:
    driver = _Driver(memory)
    middle = _PAGES // 2
    run = range(middle - 4, middle + 4)
    driver.send_pages(INFLATE, *reversed(run), _FREE, _FREE, _FREE + 2)
    assert _given_back(memory) == {*run, _FREE, _FREE + 2}
    assert sorted(advised) == [PAGE_SIZE, PAGE_SIZE, 8 * PAGE_SIZE]
    assert len(driver.queues[INFLATE].take()) == 1
    driver.send_pages(DEFLATE, *run)
    memory.write(middle * PAGE_SIZE, b"\1")
    assert memory.read(middle * PAGE_SIZE, 1) == b"\1"
    assert not driver.refused


@pytest.mark.parametrize("queue", (INFLATE, DEFLATE))
@pytest.mark.parametrize("number", (_PAGES, 1 << 20, (1 << 32) - 1))
def test_pages_that_are_no_memory_are_refused(memory: GuestMemory, queue: int, number: int) -> None:
    driver = _Driver(memory)
    driver.send_pages(queue, number)
    assert driver.refused
    assert _given_back(memory) == set()


def test_a_list_that_is_none_is_refused(memory: GuestMemory) -> None:
    driver = _Driver(memory)
    driver.send(INFLATE, b"\1\2\3\4\5")
    assert driver.refused
    assert _given_back(memory) == set()


def test_a_list_that_is_too_long_is_refused(memory: GuestMemory) -> None:
    driver = _Driver(memory)
    half = Buffer(0, _SIZE // 2)
    assert 3 * half.length > LARGEST_LIST
    driver.queues[INFLATE].add([half, half, half])
    driver.kick(INFLATE)
    assert driver.refused
    assert _given_back(memory) == set()


@given(st.lists(st.integers(0, (1 << 32) - 1) | st.integers(_FREE, _PAGES + 3), max_size=300))
def test_whatever_is_inflated_no_other_page_is_touched(numbers: list[int]) -> None:
    with GuestMemory.anonymous(_ranges()) as memory:
        for page in range(_PAGES):
            memory.write(page * PAGE_SIZE, b"\xa5")
        driver = _Driver(memory)
        whole = all(_FREE <= number < _PAGES for number in numbers)
        driver.send_pages(INFLATE, *[n for n in numbers if n >= _FREE])
        assert _given_back(memory) <= set(numbers)
        if whole:
            assert _given_back(memory) == set(numbers)
            assert not driver.refused


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 22))
def test_whatever_is_reported_no_other_page_is_touched(address: int, length: int) -> None:
    with GuestMemory.anonymous(_ranges()) as memory:
        for page in range(_PAGES):
            memory.write(page * PAGE_SIZE, b"\xa5")
        driver = _Driver(memory)
        if address < _FREE * PAGE_SIZE:
            address += _FREE * PAGE_SIZE
        driver.queues[4].add([Buffer(address, length, write=True)])
        driver.kick(4)
        pages = range(address // PAGE_SIZE, (address + length) // PAGE_SIZE)
        assert _given_back(memory) <= set(pages)


@pytest.mark.parametrize("queue", (3, 4))
def test_reported_pages_are_given_back(memory: GuestMemory, queue: int) -> None:
    driver = _Driver(memory)
    last = _PAGES - 8
    reported = [Buffer(_FREE * PAGE_SIZE, 4 * PAGE_SIZE, True), Buffer(last * PAGE_SIZE, 8, True)]
    driver.queues[queue].add(reported[:1])
    driver.kick(queue)
    assert _given_back(memory) == set(range(_FREE, _FREE + 4))
    assert len(driver.queues[queue].take()) == 1
    driver.queues[queue].add(reported[1:])
    driver.kick(queue)
    assert driver.refused
    assert last not in _given_back(memory)


def test_memory_that_the_host_keeps_stays_the_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(mapping: mmap.mmap, advice: int, *_: int) -> None:
        if advice == mmap.MADV_DONTNEED:
            raise OSError(22, "Invalid argument")

    class Locked(mmap.mmap):
        madvise = locked

    monkeypatch.setattr("cerne.kvm.memory.mmap.mmap", Locked)
    with GuestMemory.anonymous(_ranges()) as memory:
        driver = _Driver(memory)
        driver.send_pages(INFLATE, _FREE)
        driver.queues[4].add([Buffer(_FREE * PAGE_SIZE, PAGE_SIZE, True)])
        driver.kick(4)
        assert not driver.refused


def test_its_size_is_asked_for_and_told() -> None:
    changes: list[int] = []
    with GuestMemory.anonymous(_ranges()) as memory:
        driver = _Driver(memory, lambda: changes.append(driver.device.size))
        assert driver.config() == (0, 0)
        driver.device.want(8 * PAGE_SIZE)
        assert driver.config() == (8, 0)
        assert driver.read(ISR, 1) == ISR_CONFIG
        driver.device.want(8 * PAGE_SIZE)
        assert driver.read(ISR, 1) == 0
        driver.write(0x2004, 4, 5)
        driver.write(0x2004, 4, 5)
        driver.write(0x2000, 4, 77)
        assert driver.config() == (8, 5)
        driver.write(0x2004, 4, 0xFFFFFFFF)
        assert driver.device.size == _SIZE
        driver.write(20, 1, 0)
        assert driver.config() == (8, 0)
        assert changes == [5 * PAGE_SIZE, _SIZE, 0]


def _statistics(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", tag, value) for tag, value in pairs)


def test_statistics_are_told_when_they_are_asked_for(memory: GuestMemory) -> None:
    driver = _Driver(memory)
    told = driver.device
    driver.send(STATISTICS, _statistics((4, 100), (5, 1000), (4242, 7)) + b"\1")
    assert told.statistics == {"stat-free-memory": 100, "stat-total-memory": 1000}
    assert told.told > 0
    # The buffer is the device's until it wants new ones.
    assert driver.queues[STATISTICS].take() == []
    memory.write(_LIST, _statistics((4, 1)))
    driver.kick(STATISTICS)
    assert told.statistics["stat-free-memory"] == 100
    told.ask()
    told.ask()
    assert len(driver.queues[STATISTICS].take()) == 1
    driver.send(STATISTICS, _statistics((4, 50)))
    assert told.statistics == {"stat-free-memory": 50}


def test_statistics_are_asked_for_after_a_restore_too() -> None:
    with GuestMemory.anonymous(_ranges()) as memory:
        driver = _Driver(memory)
        driver.send(STATISTICS, _statistics((4, 100)))
        driver.write(0x2004, 4, 5)
        driver.device.want(8 * PAGE_SIZE)
        state = json.loads(json.dumps(driver.transport.state()))
        other = _Driver(memory)
        other.transport.restore(state)
        other.transport.rouse()
        assert other.config() == (8, 5)
        assert other.device.statistics == {STATISTIC_NAMES[4]: 100}
        other.device.ask()
        assert len(driver.queues[STATISTICS].take()) == 1


@given(st.binary(max_size=4000))
def test_whatever_the_guest_tells_does_no_harm(said: bytes) -> None:
    with GuestMemory.anonymous(_ranges()) as memory:
        driver = _Driver(memory)
        driver.send(STATISTICS, said)
        assert not driver.refused
        assert set(driver.device.statistics) <= set(STATISTIC_NAMES)


def test_a_private_file_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"\x5a" * _SIZE)
    with path.open("rb") as file, GuestMemory.private_file(_ranges(), file.fileno()) as memory:
        driver = _Driver(memory)
        memory.write(_FREE * PAGE_SIZE, bytes(PAGE_SIZE))
        driver.send_pages(INFLATE, _FREE)
        # What the guest had there when it was saved: its own past, and nobody else's.
        assert memory.read(_FREE * PAGE_SIZE, 1) == b"\x5a"
    assert path.read_bytes() == b"\x5a" * _SIZE
