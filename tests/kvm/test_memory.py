"""Guest memory: every access is within one region or refused."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cerne.errors import HostError, InputError
from cerne.kvm._address import address_of
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import (
    BLOCK_SIZE,
    HUGE_PAGE_SIZE,
    PAGE_SIZE,
    GuestAddress,
    GuestMemory,
    GuestMemoryError,
)
from cerne.units import GIB, MIB

LOW = (GuestAddress(0), 4 * PAGE_SIZE)
HIGH = (GuestAddress(1 << 32), 2 * PAGE_SIZE)


def within(address: int, length: int) -> bool:
    return any(start <= address and address + length <= start + size for start, size in (LOW, HIGH))


addresses = st.one_of(
    st.integers(-PAGE_SIZE, 5 * PAGE_SIZE),
    st.integers((1 << 32) - PAGE_SIZE, (1 << 32) + 3 * PAGE_SIZE),
    st.integers(-(1 << 70), 1 << 70),
)


@settings(deadline=None)
@given(addresses, st.binary(max_size=3 * PAGE_SIZE))
def test_what_is_written_is_read_and_all_else_is_refused(address: int, data: bytes) -> None:
    with GuestMemory.anonymous([LOW, HIGH]) as memory:
        if within(address, len(data)):
            memory.write(address, data)
            assert memory.read(address, len(data)) == data
        else:
            with pytest.raises(GuestMemoryError):
                memory.write(address, data)
            with pytest.raises(GuestMemoryError):
                memory.view(address, len(data))


@settings(deadline=None)
@given(addresses, st.integers(0, (1 << 16) - 1))
def test_numbers_are_little_endian_and_checked(address: int, value: int) -> None:
    with GuestMemory.anonymous([LOW, HIGH]) as memory:
        for size, read, write in (
            (2, memory.read_u16, memory.write_u16),
            (4, memory.read_u32, memory.write_u32),
            (8, memory.read_u64, memory.write_u64),
        ):
            if within(address, size):
                write(address, value)
                assert read(address) == value
                assert memory.read(address, size) == value.to_bytes(size, "little")
            else:
                with pytest.raises(GuestMemoryError):
                    read(address)
                with pytest.raises(GuestMemoryError):
                    write(address, value)


@pytest.mark.parametrize("length", [-1, -PAGE_SIZE, 1 << 64])
def test_lengths_that_cannot_be_are_refused(length: int) -> None:
    with GuestMemory.anonymous([LOW]) as memory, pytest.raises(GuestMemoryError):
        memory.view(PAGE_SIZE, length)


@pytest.mark.parametrize(
    "ranges",
    [
        [],
        [(GuestAddress(0), 0)],
        [(GuestAddress(0), 100)],
        [(GuestAddress(100), PAGE_SIZE)],
        [(GuestAddress(-PAGE_SIZE), PAGE_SIZE)],
        [(GuestAddress(0), 2 * PAGE_SIZE), (GuestAddress(PAGE_SIZE), PAGE_SIZE)],
    ],
)
def test_ranges_that_make_no_memory_are_refused(ranges: list[tuple[GuestAddress, int]]) -> None:
    with pytest.raises(InputError):
        GuestMemory.anonymous(ranges)


def test_a_view_is_the_guests_own_memory(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"from a file")
    with GuestMemory.anonymous([LOW]) as memory, file.open("rb") as source:
        os.preadv(source.fileno(), [memory.view(10, 4), memory.view(100, 7)], 0)
        assert memory.read(10, 4) == b"from"
        assert memory.read(100, 7) == b" a file"


def test_huge_pages_begin_where_the_guests_do() -> None:
    start = GuestAddress(3 * PAGE_SIZE)
    with GuestMemory.anonymous([(start, HUGE_PAGE_SIZE)], huge_pages=True) as memory:
        assert (address_of(memory.regions[0].view) - start) % HUGE_PAGE_SIZE == 0
        memory.write(start + HUGE_PAGE_SIZE - 1, b"x")


@pytest.mark.parametrize("make", [GuestMemory.anonymous, GuestMemory.shared])
def test_no_crash_report_has_the_guests_memory(make: Callable[..., GuestMemory]) -> None:
    with make([LOW]) as memory:
        flags = _flags_of_mapping(address_of(memory.regions[0].view))
    assert "dd" in flags


def _flags_of_mapping(address: int) -> list[str]:
    """The flags of the mapping that has an address (VmFlags in proc(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_shared_memory_is_one_file_for_others_to_map() -> None:
    with GuestMemory.shared([LOW, HIGH]) as memory:
        memory.write(HIGH[0], b"high")
        region = memory.regions[1]
        assert region.descriptor is not None
        assert os.pread(region.descriptor, 4, region.file_offset) == b"high"


def test_shared_memory_cannot_be_made_smaller_by_others() -> None:
    with GuestMemory.shared([LOW]) as memory:
        descriptor = memory.regions[0].descriptor
        assert descriptor is not None
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, PAGE_SIZE)
        memory.write(0, b"x")
        memory.discard(0, PAGE_SIZE)
        assert memory.read(0, 1) == b"\0"


def test_a_files_memory_is_copied_on_write(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    content = b"head".ljust(PAGE_SIZE, b"\0") + bytes(LOW[1]) + b"high".ljust(HIGH[1], b"\0")
    file.write_bytes(content)
    with file.open("rb") as source:
        memory = GuestMemory.private_file([LOW, HIGH], source.fileno(), offset=PAGE_SIZE)
    with memory:
        assert memory.read(HIGH[0], 4) == b"high"
        memory.write(HIGH[0], b"mine")
        assert memory.read(HIGH[0], 4) == b"mine"
    assert file.read_bytes() == content


def test_a_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.write_bytes(bytes(PAGE_SIZE))
    with file.open("rb") as source:
        with pytest.raises(InputError, match="shorter"):
            GuestMemory.private_file([LOW], source.fileno())
        with pytest.raises(InputError, match="multiple of the page size"):
            GuestMemory.private_file([(GuestAddress(0), PAGE_SIZE)], source.fileno(), offset=1)


@pytest.mark.parametrize("shared", [False, True])
def test_discarded_pages_are_zero(shared: bool) -> None:
    make = GuestMemory.shared if shared else GuestMemory.anonymous
    with make([LOW]) as memory:
        memory.write(0, b"x" * LOW[1])
        memory.discard(PAGE_SIZE, PAGE_SIZE)
        assert memory.read(PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
        assert memory.read(PAGE_SIZE - 1, 1) == b"x"
        with pytest.raises(GuestMemoryError):
            memory.discard(1, PAGE_SIZE)
        with pytest.raises(GuestMemoryError):
            memory.discard(0, LOW[1] + PAGE_SIZE)


def test_what_is_discarded_may_cross_regions() -> None:
    size = 4 * PAGE_SIZE
    ranges = [(GuestAddress(at), size) for at in (0, size, 3 * size)]
    with GuestMemory.anonymous(ranges) as memory:
        for start, _ in ranges:
            memory.write(start, b"x" * size)
        memory.require(0, 2 * size)
        memory.discard(size - PAGE_SIZE, 2 * PAGE_SIZE)
        assert memory.read(size - PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
        assert memory.read(size, PAGE_SIZE) == bytes(PAGE_SIZE)
        assert memory.read(size + PAGE_SIZE, 1) == memory.read(0, 1) == b"x"
        with pytest.raises(GuestMemoryError):
            memory.require(size, 2 * size)
        with pytest.raises(GuestMemoryError):
            memory.discard(size, 3 * size)
        assert memory.read(2 * size - PAGE_SIZE, 1) == b"x"


def test_a_view_is_discarded() -> None:
    with GuestMemory.anonymous([LOW], huge_pages=True) as memory, memoryview(bytearray(1)) as other:
        memory.write(0, b"x" * LOW[1])
        memory.discard_view(memory.view(PAGE_SIZE, PAGE_SIZE))
        memory.discard_view(memory.view(0, 0))
        assert memory.read(PAGE_SIZE, PAGE_SIZE) == bytes(PAGE_SIZE)
        assert memory.read(PAGE_SIZE - 1, 1) == memory.read(2 * PAGE_SIZE, 1) == b"x"
        with pytest.raises(GuestMemoryError):
            memory.discard_view(memory.view(PAGE_SIZE, 8))
        with pytest.raises(GuestMemoryError):
            memory.discard_view(other)


def test_a_view_outlives_the_memory() -> None:
    with GuestMemory.anonymous([LOW]) as memory:
        memory.write(0, b"kept")
        view = memory.view(0, 4)
    assert bytes(view) == b"kept"
    with pytest.raises(GuestMemoryError):
        memory.read(0, 1)


def test_cleared_memory_is_zero_whatever_is_under_it(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(b"x" * 3 * PAGE_SIZE)
    ranges = [(GuestAddress(0), PAGE_SIZE), (GuestAddress(4 << 30), 2 * PAGE_SIZE)]
    with path.open("r+b") as file:
        kinds = [
            GuestMemory.anonymous(ranges, huge_pages=True),
            GuestMemory.shared(ranges),
            GuestMemory.private_file(ranges, file.fileno()),
        ]
    for memory in kinds:
        with memory:
            memory.write(4 << 30, b"something")
            memory.clear()
            for start, size in ranges:
                assert memory.read(start, size) == bytes(size)
                memory.write(start, b"y" * size)
                assert memory.read(start, size) == b"y" * size
    assert path.read_bytes() == b"x" * 3 * PAGE_SIZE


def test_memory_in_hugepages_is_that_of_the_host_or_refused() -> None:
    before = _hugepages()
    ranges = [(GuestAddress(0), 4 << 20)]
    if before < 2:
        with pytest.raises(HostError):
            GuestMemory.shared(ranges, hugepages=True)
        pytest.skip("this host has no free hugepages: sysctl vm.nr_hugepages=2")
    with GuestMemory.shared(ranges, hugepages=True) as memory:
        memory.write(0, b"x")
        memory.write(2 << 20, b"y")
        assert _hugepages() == before - 2
    assert _hugepages() == before


def _hugepages() -> int:
    file = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    return int(file.read_text()) if file.exists() else 0


def test_memory_may_be_merged_by_the_host_if_that_is_asked_for() -> None:
    with GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory:
        assert "mg" not in _flags(memory)
        try:
            memory.merge()
        except HostError:
            pytest.skip("this kernel has no KSM")
        assert "mg" in _flags(memory)


def _flags(memory: GuestMemory) -> list[str]:
    """The flags of the mapping of a memory's first region (proc_pid_smaps(5))."""
    place = address_of(memory.regions[0].view)
    found: list[str] = []
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            start, end = (int(each, 16) for each in first.split("-"))
            inside = start <= place < end
        elif first == "VmFlags:" and inside:
            found = line.split()[1:]
    return found


def test_a_forked_process_has_the_plugged_blocks_and_gives_them_to_a_guest(
    kvm_device: Path,
) -> None:
    with GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory:
        start = GuestAddress(4 << 30)
        memory.reserve(start, 4 * BLOCK_SIZE)
        memory.plug(1)
        memory.plug(2)
        memory.write(start + 2 * BLOCK_SIZE - 2, b"fork")
        pid = os.fork()
        if pid == 0:
            _give_and_end(memory, start)
        memory.write(start + 2 * BLOCK_SIZE - 2, b"mine")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def _give_and_end(memory: GuestMemory, start: int) -> None:
    """In a child: make a VM over the memory, take a block away, and end with 7 if all is well."""
    try:
        with Kvm() as kvm, kvm.create_vm() as vm:
            vm.set_memory(memory)
            same = memory.read(start + 2 * BLOCK_SIZE - 2, 4) == b"fork"
            vm.unplug_block(1)
            memory.unplug(1)
            vm.plug_block(memory, 2 + 1)
            os._exit(7 if same and memory.plugged == {2} else 1)
    finally:
        os._exit(2)


def test_what_is_written_to_a_block_after_it_was_unplugged_is_not_there_when_it_is_plugged() -> (
    None
):
    """As by a disk's request that is under way when a hostile guest unplugs its buffer."""
    start = 4 * GIB
    with GuestMemory.anonymous([(GuestAddress(0), MIB)]) as memory:
        memory.reserve(GuestAddress(start), BLOCK_SIZE)
        memory.plug(0)
        buffer = memory.view(start, 4096)
        memory.unplug(0)
        buffer[:4] = b"left"
        buffer.release()
        memory.plug(0)
        assert memory.read(start, 4) == bytes(4)
