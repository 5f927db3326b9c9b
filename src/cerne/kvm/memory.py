"""Guest memory: the guest's RAM, and the only way for this process to access it.

A guest's memory is made of regions, each a page-aligned range of guest-physical addresses over a
mapping of this process (mmap(2)): anonymous, a memfd that other processes may map too (vhost-user),
or a file mapped copy-on-write, from which a snapshot is restored. Behind them there may be room:
address space in which blocks are plugged while the guest runs. Every access names a guest
address that the guest may have chosen, and is checked against the regions. Numbers are
little-endian, as x86-64 and virtio have them.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from enum import Enum
from types import TracebackType
from typing import NamedTuple, NewType, Self

from cerne.errors import GuestError, HostError, InputError
from cerne.kvm._address import address_of
from cerne.units import counted

GuestAddress = NewType("GuestAddress", int)
"""A guest-physical address."""

MemoryRange = tuple[GuestAddress, int]
"""The address of a range, and its size in bytes."""

PAGE_SIZE = mmap.PAGESIZE
HUGE_PAGE_SIZE = 2 << 20
BLOCK_SIZE = 128 << 20
"""Bytes of a block of memory that is plugged: the least that Linux adds."""

# From <asm-generic/mman-common.h>; the mmap module has it from Python 3.13 on.
_MAP_NORESERVE = 0x4000
_FIXED_SIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# In native mode the interpreter reads a number in one piece, so that an aligned index that a
# guest's other CPU writes is never seen half-written; x86-64 is little-endian. It does not write
# one so: where it packs a number it writes zeros first, which a guest could see.
_U16 = struct.Struct("@H")
_U32 = struct.Struct("@I")
_U64 = struct.Struct("@Q")


class GuestMemoryError(GuestError):
    """A range of guest addresses is not, or not wholly, within one region of its memory."""

    code = "guest-memory"


class Backing(Enum):
    """The kind of mapping of a region, which decides how its pages are freed."""

    ANONYMOUS = "anonymous"
    """Private to this process; copy-on-write in a forked child."""
    SHARED = "shared"
    """A memfd: all processes that map it share its bytes, also a forked child."""
    PRIVATE_FILE = "private-file"
    """A file, which is read and never written; copy-on-write."""


class MemoryRegion(NamedTuple):
    """One contiguous piece of guest memory."""

    start: GuestAddress
    size: int
    """Bytes; a multiple of the page size."""
    view: memoryview
    """All of its bytes, writable."""
    mapping: mmap.mmap
    mapping_offset: int
    """Where in the mapping the region begins (an anonymous one is aligned for huge pages)."""
    backing: Backing
    descriptor: int | None = None
    """The memfd under a shared region; owned by the `GuestMemory`."""
    file_offset: int = 0
    """Where in the memfd or the file the region begins."""

    @property
    def end(self) -> int:
        """The first address past the region."""
        return self.start + self.size


class GuestMemory:
    """The memory of one guest; a context manager that unmaps it.

    A view that is still held when the memory is closed keeps its mapping until it is dropped.
    """

    def __init__(self, regions: Iterable[MemoryRegion]) -> None:
        """Take over regions, which must not overlap.

        Raises:
            InputError: there is no region, two overlap, or one is not aligned to pages.
        """
        self._fixed = tuple(sorted(regions, key=lambda region: region.start))
        self._regions = self._fixed
        self._room: MemoryRegion | None = None
        self._plugged: frozenset[int] = frozenset()
        _check_ranges([(region.start, region.size) for region in self._regions])

    @classmethod
    def anonymous(cls, ranges: Sequence[MemoryRange], *, huge_pages: bool = False) -> Self:
        """Zeroed memory of this process alone, copy-on-write in a forked child.

        `huge_pages` asks for transparent huge pages, which make a fork and the guest's page
        faults cheaper.

        Raises:
            InputError: the ranges are empty, overlap, or are not aligned to pages.
            HostError: the host does not have that much memory.
        """
        _check_ranges(ranges)
        with contextlib.ExitStack() as undo:
            regions = []
            for start, size in ranges:
                region = _anonymous_region(start, size, huge_pages)
                undo.callback(_unmap, region)
                regions.append(region)
            memory = cls(regions)
            undo.pop_all()
        return memory

    @classmethod
    def shared(
        cls, ranges: Sequence[MemoryRange], *, name: str = "cerne-guest", hugepages: bool = False
    ) -> Self:
        """Zeroed memory in one memfd, which other processes can map (vhost-user).

        With `hugepages` it is in those of 2 MiB that the host has set aside.

        Raises:
            InputError: the ranges are empty, overlap, or are not aligned to pages.
            HostError: the host does not have that much memory.
        """
        _check_ranges(ranges)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if hugepages:
            flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB
        descriptor = _memfd(name, flags)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, descriptor)
            os.ftruncate(descriptor, sum(size for _, size in ranges))
            # Without the seals, a process that shares it could remove pages of this process.
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _FIXED_SIZE)
            memory = cls(_file_regions(ranges, descriptor, 0, Backing.SHARED, undo))
            undo.pop_all()
        return memory

    @classmethod
    def private_file(
        cls, ranges: Sequence[MemoryRange], descriptor: int, *, offset: int = 0
    ) -> Self:
        """Memory whose first content is a file's, from `offset` on, one range after the other.

        The file is never written: the guest's writes are in pages of this process. The caller keeps
        the descriptor, and may close it.

        Raises:
            InputError: the ranges or the offset are not aligned, or the file is too short.
            HostError: mapping the file failed.
        """
        _check_ranges(ranges)
        wanted = offset + sum(size for _, size in ranges)
        if offset < 0 or offset % PAGE_SIZE:
            raise InputError(
                f"the offset {offset} of the memory file is not a multiple of the page size"
            )
        if os.fstat(descriptor).st_size < wanted:
            raise InputError(
                f"the memory file is shorter than the {counted(wanted, 'byte')} it should have"
            )
        with contextlib.ExitStack() as undo:
            memory = cls(_file_regions(ranges, descriptor, offset, Backing.PRIVATE_FILE, undo))
            undo.pop_all()
        return memory

    @property
    def regions(self) -> tuple[MemoryRegion, ...]:
        """The regions by address; adjacent plugged blocks are one."""
        return self._regions

    @property
    def size(self) -> int:
        """Bytes in all regions."""
        return sum(region.size for region in self._regions)

    @property
    def fixed(self) -> tuple[MemoryRegion, ...]:
        """The regions by address without the plugged blocks."""
        return self._fixed

    @property
    def fixed_size(self) -> int:
        """Bytes in all regions without the plugged blocks."""
        return sum(region.size for region in self._fixed)

    @property
    def room(self) -> MemoryRange:
        """The range in which blocks can be plugged; of size 0 if there is none."""
        return (GuestAddress(0), 0) if self._room is None else (self._room.start, self._room.size)

    @property
    def plugged(self) -> frozenset[int]:
        """The numbers of the plugged blocks."""
        return self._plugged

    def merge(self) -> None:
        """Let the host merge equal pages of this memory with others' (KSM).

        Raises:
            HostError: the host's kernel does not merge pages.
        """
        for region in (*self._fixed, *([] if self._room is None else [self._room])):
            try:
                region.mapping.madvise(mmap.MADV_MERGEABLE)
            except OSError as error:
                raise HostError(f"the host merges no memory: {error.strerror}") from error

    def reserve(self, start: GuestAddress, size: int) -> None:
        """Make room for blocks, once; it takes address space and no memory.

        Raises:
            InputError: the range is not whole blocks, or not behind all regions.
            HostError: the host does not map so much.
        """
        behind = start >= max(region.end for region in self._fixed)
        if self._room is not None or not behind or size <= 0 or size % BLOCK_SIZE:
            raise InputError(
                f"room of {counted(size, 'byte')} at {start:#x} is not behind the memory"
            )
        self._room = _anonymous_region(start, size, huge_pages=True)

    def block(self, number: int) -> MemoryRegion:
        """A block of the room, plugged or not, as one region.

        Raises:
            InputError: there is no such block.
        """
        return self._run(number, number)

    def plug(self, number: int) -> None:
        """Make a block of the room memory; it has zeros.

        Raises:
            HostError: the host does not free what was written to it while it was room.
        """
        # A request that was under way when the block was unplugged has still written to it.
        _discard(self.block(number), 0, BLOCK_SIZE)
        self._set_plugged(self._plugged | {number})

    def unplug(self, number: int) -> None:
        """Make a plugged block room again, and free its pages.

        Raises:
            HostError: the host does not free them; it stays plugged.
        """
        _discard(self.block(number), 0, BLOCK_SIZE)
        self._set_plugged(self._plugged - {number})

    def __contains__(self, address: int) -> bool:
        return any(region.start <= address < region.end for region in self._regions)

    def read(self, address: int, length: int) -> bytes:
        """A copy of `length` bytes.

        Raises:
            GuestMemoryError: they do not lie within one region.
        """
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` into the guest.

        Raises:
            GuestMemoryError: it would not lie within one region.
        """
        self.view(address, len(data))[:] = data

    def view(self, address: int, length: int) -> memoryview:
        """The guest's own bytes, writable, with no copy; fit for preadv and pwritev.

        Raises:
            GuestMemoryError: they do not lie within one region.
        """
        # As `_locate`, without the call: devices ask for each buffer of a guest.
        for region in self._regions:
            offset = address - region.start
            if offset >= 0 and 0 <= length <= region.size - offset:
                return region.view[offset : offset + length]
        raise _not_in_memory(address, length)

    def read_u16(self, address: int) -> int:
        """A 16-bit number; raises GuestMemoryError outside memory."""
        return self._unpack(_U16, address)

    def read_u32(self, address: int) -> int:
        """A 32-bit number; raises GuestMemoryError outside memory."""
        return self._unpack(_U32, address)

    def read_u64(self, address: int) -> int:
        """A 64-bit number; raises GuestMemoryError outside memory."""
        return self._unpack(_U64, address)

    def write_u16(self, address: int, value: int) -> None:
        """Write a 16-bit number; raises GuestMemoryError outside memory."""
        region, offset = self._locate(address, 2)
        region.view[offset : offset + 2] = value.to_bytes(2, "little")

    def write_u32(self, address: int, value: int) -> None:
        """Write a 32-bit number; raises GuestMemoryError outside memory."""
        region, offset = self._locate(address, 4)
        region.view[offset : offset + 4] = value.to_bytes(4, "little")

    def write_u64(self, address: int, value: int) -> None:
        """Write a 64-bit number; raises GuestMemoryError outside memory."""
        region, offset = self._locate(address, 8)
        region.view[offset : offset + 8] = value.to_bytes(8, "little")

    def require(self, address: int, length: int) -> None:
        """Refuse a range that is not memory; it may cross adjacent regions.

        Raises:
            GuestMemoryError: a part of it is not memory.
        """
        self._pieces(address, length)

    def discard(self, address: int, length: int) -> None:
        """Free the whole pages of a range; the guest then reads zeros.

        The range may cross adjacent regions. Pages of a private file have the file's content again
        instead.

        Raises:
            GuestMemoryError: a part of the range is not memory, or it is not whole pages; nothing
                was freed.
            HostError: the host does not free them, for example because memory is locked.
        """
        if address % PAGE_SIZE or length % PAGE_SIZE:
            raise GuestMemoryError(
                f"{counted(length, 'byte')} at {address:#x} of the guest are not whole pages"
            )
        for region, offset, size in self._pieces(address, length):
            _discard(region, offset, size)

    def discard_view(self, view: memoryview) -> None:
        """Free the pages of a view of this memory, as `discard` does.

        Raises:
            GuestMemoryError: it is not whole pages; nothing was freed.
            HostError: the host does not free them.
        """
        if not view:
            return
        # This object owns the mapping, which exists as long as the view.
        place = address_of(view)
        for region in self._regions:
            offset = place - address_of(region.view)
            if 0 <= offset < region.size:
                self.discard(region.start + offset, len(view))
                return
        raise GuestMemoryError("the view does not belong to the guest's memory")

    def clear(self) -> None:
        """Zero the whole memory, as at power-on, unplug all blocks, and free its pages.

        Its VM must be closed before, because ranges of a private file are mapped again.

        Raises:
            HostError: the host refuses the mapping.
        """
        for number in self._plugged:
            self.unplug(number)
        self._fixed = tuple(_cleared(region) for region in self._fixed)
        self._regions = self._fixed

    def close(self) -> None:
        """Unmap the memory; its VM must be closed before."""
        for run in self._regions[len(self._fixed) :]:
            run.view.release()
        for region in (*self._fixed, *([] if self._room is None else [self._room])):
            _unmap(region)
        descriptors = {region.descriptor for region in self._fixed}
        for descriptor in descriptors:
            if descriptor is not None:
                os.close(descriptor)
        self._regions = self._fixed = ()
        self._room, self._plugged = None, frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _set_plugged(self, plugged: frozenset[int]) -> None:
        runs = [self._run(first, last) for first, last in _runs(plugged)]
        # Other threads see all of the former regions, or all of these.
        self._regions = (*self._fixed, *runs)
        self._plugged = plugged

    def _run(self, first: int, last: int) -> MemoryRegion:
        """Adjacent blocks of the room as one region."""
        room = self._room
        if room is None or not 0 <= first <= last < room.size // BLOCK_SIZE:
            raise InputError(f"there is no block {last} in the room behind the memory")
        offset, end = first * BLOCK_SIZE, (last + 1) * BLOCK_SIZE
        return room._replace(
            start=GuestAddress(room.start + offset),
            size=end - offset,
            view=room.view[offset:end],
            mapping_offset=room.mapping_offset + offset,
        )

    def _unpack(self, number: struct.Struct, address: int) -> int:
        region, offset = self._locate(address, number.size)
        value: int = number.unpack_from(region.view, offset)[0]
        return value

    def _pieces(self, address: int, length: int) -> list[tuple[MemoryRegion, int, int]]:
        """The regions of a range, with its offset and its bytes in each."""
        pieces = []
        at, end = address, address + length
        for region in self._regions:
            if at < end and region.start <= at < region.end:
                size = min(end, region.end) - at
                pieces.append((region, at - region.start, size))
                at += size
        if at != end:
            raise _not_in_memory(address, length)
        return pieces

    def _locate(self, address: int, length: int) -> tuple[MemoryRegion, int]:
        for region in self._regions:
            offset = address - region.start
            if offset >= 0 and 0 <= length <= region.size - offset:
                return region, offset
        raise _not_in_memory(address, length)


def _not_in_memory(address: int, length: int) -> GuestMemoryError:
    return GuestMemoryError(
        f"{counted(length, 'byte')} at {address:#x} are not in the guest's memory"
    )


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """The first and the last number of each run of adjacent numbers."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] + 1 == number:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _discard(region: MemoryRegion, offset: int, size: int) -> None:
    try:
        region.mapping.madvise(_advice(region), region.mapping_offset + offset, size)
    except OSError as error:
        raise HostError(f"the host does not free a guest's memory: {error.strerror}") from error


def _check_ranges(ranges: Sequence[MemoryRange]) -> None:
    if not ranges:
        raise InputError("a guest needs memory, and no range was given")
    end = 0
    for start, size in sorted(ranges):
        if size <= 0 or start < 0 or start % PAGE_SIZE or size % PAGE_SIZE:
            raise InputError(
                f"memory of {counted(size, 'byte')} at {start:#x} is not a whole number of pages"
            )
        if start < end:
            raise InputError(f"memory at {start:#x} overlaps the memory before it")
        end = start + size


def _anonymous_region(start: GuestAddress, size: int, huge_pages: bool) -> MemoryRegion:
    # Huge pages serve a guest only if both addresses are equal modulo their size.
    slack = HUGE_PAGE_SIZE if huge_pages else 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    mapping = _map(-1, size + slack, flags, 0)
    offset = (start - address_of(mapping)) % HUGE_PAGE_SIZE if huge_pages else 0
    if huge_pages:
        # A kernel without transparent huge pages returns EINVAL, and uses small ones.
        with contextlib.suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(mapping)[offset : offset + size]
    return MemoryRegion(start, size, view, mapping, offset, Backing.ANONYMOUS)


def _cleared(region: MemoryRegion) -> MemoryRegion:
    if region.backing is Backing.PRIVATE_FILE:
        fresh = _anonymous_region(region.start, region.size, huge_pages=True)
        _unmap(region)
        return fresh
    region.mapping.madvise(_advice(region), region.mapping_offset, region.size)
    return region


def _advice(region: MemoryRegion) -> int:
    """The advice that frees a region's pages."""
    return mmap.MADV_REMOVE if region.backing is Backing.SHARED else mmap.MADV_DONTNEED


def _file_regions(
    ranges: Sequence[MemoryRange],
    descriptor: int,
    offset: int,
    backing: Backing,
    undo: contextlib.ExitStack,
) -> list[MemoryRegion]:
    shared = backing is Backing.SHARED
    flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE | _MAP_NORESERVE
    regions = []
    for start, size in ranges:
        mapping = _map(descriptor, size, flags, offset)
        region = MemoryRegion(
            start,
            size,
            memoryview(mapping),
            mapping,
            0,
            backing,
            descriptor=descriptor if shared else None,
            file_offset=offset,
        )
        undo.callback(_unmap, region)
        regions.append(region)
        offset += size
    return regions


def _memfd(name: str, flags: int) -> int:
    try:
        return os.memfd_create(name, flags)
    except OSError as error:
        raise HostError(f"the host makes no memory file: {error.strerror}") from error


def _map(descriptor: int, size: int, flags: int, offset: int) -> mmap.mmap:
    access = mmap.PROT_READ | mmap.PROT_WRITE
    try:
        mapping = mmap.mmap(descriptor, size, flags=flags, prot=access, offset=offset)
    except OSError as error:
        raise HostError(
            f"the host does not map {counted(size, 'byte')} as guest memory: {error.strerror}",
            hint="give the machine less memory",
        ) from error
    except OverflowError as error:
        raise InputError(
            f"{counted(size, 'byte')} of memory is more than a process can map"
        ) from error
    # A crash report of this process never has what the guest has in memory.
    mapping.madvise(mmap.MADV_DONTDUMP)
    return mapping


def _unmap(region: MemoryRegion) -> None:
    region.view.release()
    # A view still uses the mapping, which goes away with the last view.
    with contextlib.suppress(BufferError):
        region.mapping.close()
