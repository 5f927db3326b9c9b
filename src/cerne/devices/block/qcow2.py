"""A disk in QEMU's format qcow2 (docs/interop/qcow2.txt of QEMU), with another disk under it.

Two tables map the clusters. A first write to a cluster appends one to the file: first its data,
then its table entry, so that a killed process leaves a consistent disk. Reference counts are
written when the disk is closed; until then the header says that they are not valid (lazy reference
counts), and QEMU makes them again when it opens the disk. The file is untrusted: each offset in it
is checked before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from cerne.devices.block.disk import Disk
from cerne.devices.block.qcow2_head import (
    COMPATIBLE_AT,
    CORRUPT,
    DIRTY,
    ENTRY,
    HEADER,
    INCOMPATIBLE_AT,
    LAZY_REFERENCE_COUNTS,
    MAGIC,
    SIXTEEN_BITS,
    V2_HEADER_SIZE,
    require_known,
)
from cerne.devices.virtio.buffers import scatter, size_of, split
from cerne.errors import ImageError
from cerne.kvm.fallocate import KEEP_SIZE, PUNCH_HOLE, fallocate

_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED_SECTOR = 512

_LARGEST_FIRST_TABLE = 32 << 20
_TABLES_KEPT = 16 << 20
"""The most bytes of cached tables, because a guest may read everywhere."""
_ZEROS = memoryview(bytes(1 << 20))
_MOST_VIEWS = 1024
"""The most buffers of one call (IOV_MAX)."""


class Kind(Enum):
    """The place of a cluster's content."""

    DATA = "data"
    ZERO = "zero"
    BACKING = "backing"
    COMPRESSED = "compressed"


class _Run(NamedTuple):
    """Adjacent bytes of the disk with the same kind of place."""

    kind: Kind
    length: int
    place: int
    """The offset in the file of plain data; the table's entry of compressed data."""


class Qcow2Disk:
    """The disk in the file behind a descriptor, which it takes over with the disk under it.

    Raises:
        ImageError: the file does not have the format, is damaged, or has unknown features.
    """

    def __init__(self, descriptor: int, backing: Disk | None, *, read_only: bool) -> None:
        self._descriptor = descriptor
        self._backing = backing
        self._read_only = read_only
        header = os.pread(descriptor, HEADER.size, 0)
        if len(header) < V2_HEADER_SIZE or not header.startswith(MAGIC):
            raise ImageError("the disk does not have the format qcow2")
        fields = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
        (_, version, backing_at, _, self._cluster_bits, self.size, encryption, first_size) = fields[
            :8
        ]
        (self._first_at, self._counts_at, self._counts_clusters, snapshots) = fields[8:12]
        (incompatible, self._compatible, _, counts_order, _) = (
            fields[13:] if version >= 3 else (0, 0, 0, SIXTEEN_BITS, 0)
        )
        self._incompatible = incompatible
        self._counts_order = counts_order
        require_known(version, encryption, incompatible, self._cluster_bits, self.size)
        if bool(backing_at) != (backing is not None):
            raise ImageError(
                "the disk's header and the configuration disagree about a backing file"
            )
        if not read_only and (version < 3 or snapshots or incompatible & CORRUPT):
            raise ImageError(
                "the native engine does not write this disk: it has version 2, is damaged, "
                "or has snapshots",
                hint="convert it: qemu-img convert -O qcow2 OLD NEW",
            )
        self._cluster = 1 << self._cluster_bits
        self._entries = self._cluster // ENTRY
        self._first = self._first_table(first_size)
        self._blocks: list[int] = []
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        file_size = os.fstat(descriptor).st_size
        self._end = -(-file_size // self._cluster) * self._cluster

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views from `offset` on."""
        for run in self._runs(offset, size_of(views)):
            now, views = split(views, run.length)
            if run.kind is Kind.DATA:
                self._read_file(run.place, now)
            elif run.kind is Kind.ZERO:
                _zero(now)
            elif run.kind is Kind.COMPRESSED:
                cluster = self._decompressed(run.place)
                within = offset % self._cluster
                scatter(now, cluster[within : within + run.length])
            else:
                self._read_backing(offset, now)
            offset += run.length

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views from `offset` on."""
        self._require_writable()
        while views:
            first = offset // self._cluster
            place = self._owned(first)
            count = self._alike(first, offset + size_of(views), place)
            length = (first + count) * self._cluster - offset
            now, views = split(views, length)
            if place is not None:
                self._write_file(place + offset % self._cluster, now)
            else:
                self._write_new(offset, count, now)
            offset += size_of(now)

    def flush(self) -> None:
        """Return when what was written is on the medium."""
        os.fdatasync(self._descriptor)

    def discard(self, offset: int, length: int) -> None:
        """Free the space of whole clusters; they read as zeros."""
        self._require_writable()
        for index in self._whole(offset, length):
            if self._entry(index):
                self._forget(index)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Zero a range: whole clusters by a mark, the rest by a write."""
        self._require_writable()
        whole = self._whole(offset, length)
        if not whole:
            self.write(offset, [memoryview(bytes(length))])
            return
        start, end = whole.start * self._cluster, whole.stop * self._cluster
        if start > offset:
            self.write(offset, [memoryview(bytes(start - offset))])
        for index in whole:
            self._forget(index)
        if offset + length > end:
            self.write(end, [memoryview(bytes(offset + length - end))])

    def close(self) -> None:
        """Write the reference counts, if anything was written, and close the files."""
        try:
            if self._incompatible & DIRTY and not self._read_only:
                self._write_counts()
        finally:
            os.close(self._descriptor)
            if self._backing is not None:
                self._backing.close()

    # Finding clusters

    def _runs(self, offset: int, length: int) -> Iterator[_Run]:
        """A range of the disk, in pieces of the greatest length."""
        end = offset + length
        run: _Run | None = None
        while offset < end:
            piece = self._piece(offset, end)
            offset += piece.length
            joined = None if run is None else _joined(run, piece)
            if run is not None and joined is None:
                yield run
            run = piece if joined is None else joined
        if run is not None:
            yield run

    def _piece(self, offset: int, end: int) -> _Run:
        within = offset % self._cluster
        length = min(self._cluster - within, end - offset)
        entry = self._entry(offset // self._cluster)
        if entry & _COMPRESSED:
            return _Run(Kind.COMPRESSED, length, entry)
        if entry & _ZERO:
            return _Run(Kind.ZERO, length, 0)
        if entry & _OFFSET:
            return _Run(Kind.DATA, length, self._place(entry) + within)
        return _Run(Kind.ZERO if self._backing is None else Kind.BACKING, length, 0)

    def _owned(self, index: int) -> int | None:
        """The offset of a cluster that can be written in its place."""
        entry = self._entry(index)
        if entry & (_COMPRESSED | _ZERO) or not entry & _COPIED:
            return None
        return self._place(entry)

    def _alike(self, first: int, end: int, place: int | None) -> int:
        """How many clusters from `first` on one write covers: adjacent ones, or new ones only.

        Never beyond the disk's `end`, nor beyond one table.
        """
        last = min((end - 1) // self._cluster, first | (self._entries - 1))
        count = 1
        while first + count <= last:
            expected = None if place is None else place + count * self._cluster
            if self._owned(first + count) != expected:
                break
            count += 1
        return count

    def _whole(self, offset: int, length: int) -> range:
        """The clusters that are completely in a range; the disk's last one may be cut off."""
        end = offset + length
        if end == self.size:
            end += -end % self._cluster
        return range(-(-offset // self._cluster), end // self._cluster)

    def _place(self, entry: int) -> int:
        place = entry & _OFFSET
        if not place or place % self._cluster or place >= self._end:
            raise OSError(errno.EIO, "the disk's tables are damaged")
        return place

    def _entry(self, index: int) -> int:
        which, within = divmod(index, self._entries)
        if not self._first[which] & _OFFSET:
            return 0
        entry: int = self._table(which)[within]
        return entry

    def _table(self, which: int) -> array[int]:
        table = self._tables.get(which)
        if table is None:
            place = self._place(self._first[which])
            table = _numbers(os.pread(self._descriptor, self._cluster, place), self._entries)
            self._keep_table(which, table)
        else:
            self._tables.move_to_end(which)
        return table

    def _keep_table(self, which: int, table: array[int]) -> None:
        self._tables[which] = table
        if len(self._tables) * self._cluster > max(_TABLES_KEPT, self._cluster):
            self._tables.popitem(last=False)

    def _first_table(self, count: int) -> array[int]:
        needed = -(-self.size // (self._cluster * self._entries))
        if count < needed or ENTRY * needed > _LARGEST_FIRST_TABLE or self._first_at % 512:
            raise ImageError("the disk's first table is damaged")
        if self._first_at + ENTRY * needed > os.fstat(self._descriptor).st_size:
            raise ImageError("the disk is cut off")
        return _numbers(os.pread(self._descriptor, ENTRY * needed, self._first_at), needed)

    # Reading and writing the files

    def _read_file(self, place: int, views: Sequence[memoryview]) -> None:
        while views:
            moved = os.preadv(self._descriptor, views[:_MOST_VIEWS], place)
            if moved == 0:
                # The last cluster may be incomplete.
                _zero(views)
                return
            place += moved
            views = split(views, moved)[1]

    def _write_file(self, place: int, views: Sequence[memoryview]) -> None:
        while views:
            moved = os.pwritev(self._descriptor, views[:_MOST_VIEWS], place)
            place += moved
            views = split(views, moved)[1]

    def _read_backing(self, offset: int, views: Sequence[memoryview]) -> None:
        assert self._backing is not None
        inside, beyond = split(views, max(0, self._backing.size - offset))
        if inside:
            self._backing.read(offset, inside)
        _zero(beyond)

    def _decompressed(self, entry: int) -> bytes:
        bits = 62 - (self._cluster_bits - 8)
        place = entry & (1 << bits) - 1
        sectors = (entry & ~(_COPIED | _COMPRESSED)) >> bits
        length = (sectors + 1) * _COMPRESSED_SECTOR - place % _COMPRESSED_SECTOR
        try:
            packed = os.pread(self._descriptor, length, place)
            data = zlib.decompressobj(-12).decompress(packed, self._cluster)
        except zlib.error as error:
            raise OSError(errno.EIO, f"the disk has a damaged cluster: {error}") from error
        if len(data) != self._cluster:
            raise OSError(errno.EIO, "the disk has a damaged cluster")
        return data

    def _write_new(self, offset: int, count: int, views: Sequence[memoryview]) -> None:
        """Write to clusters that get a new place, with their former data around it."""
        first = offset // self._cluster
        before = self._old(first * self._cluster, offset)
        end = offset + size_of(views)
        after = self._old(end, (first + count) * self._cluster)
        self._mark_dirty()
        place = self._allocate(count)
        self._write_file(place, [memoryview(before), *views, memoryview(after)])
        entries = range(place, place + count * self._cluster, self._cluster)
        self._set_entries(first, [entry | _COPIED for entry in entries])

    def _old(self, start: int, end: int) -> bytearray:
        """The data of a cluster, with zeros after the disk's end."""
        data = bytearray(end - start)
        inside = min(end, self.size) - start
        if inside > 0:
            self.read(start, [memoryview(data)[:inside]])
        return data

    def _forget(self, index: int) -> None:
        """Zero a cluster, and free its space."""
        place = self._owned(index)
        self._mark_dirty()
        self._set_entries(index, [_ZERO])
        if place is not None:
            # If the file system does not free it, the next check does.
            with contextlib.suppress(OSError):
                fallocate(self._descriptor, PUNCH_HOLE | KEEP_SIZE, place, self._cluster)

    def _allocate(self, count: int) -> int:
        place: int = self._end
        self._end = place + count * self._cluster
        return place

    def _set_entries(self, first: int, entries: Sequence[int]) -> None:
        """Set entries of one table, which is made first if it is missing."""
        which, within = divmod(first, self._entries)
        if not self._first[which] & _OFFSET:
            table = _numbers(b"", self._entries)
            table[within : within + len(entries)] = array("Q", entries)
            place = self._allocate(1)
            self._write_numbers(place, table)
            self._first[which] = place | _COPIED
            self._keep_table(which, table)
            self._write_numbers(self._first_at + ENTRY * which, self._first[which : which + 1])
            return
        table = self._table(which)
        table[within : within + len(entries)] = array("Q", entries)
        place = self._place(self._first[which]) + ENTRY * within
        self._write_numbers(place, table[within : within + len(entries)])

    def _write_numbers(self, place: int, numbers: array[int]) -> None:
        swapped = numbers[:]
        swapped.byteswap()
        self._write_file(place, [memoryview(swapped.tobytes())])

    def _require_writable(self) -> None:
        if self._read_only:
            raise OSError(errno.EROFS, "the disk is read-only")

    # Reference counts

    def _mark_dirty(self) -> None:
        """Mark the reference counts as not valid, before any change."""
        if self._incompatible & DIRTY:
            return
        self._incompatible |= DIRTY
        self._compatible |= LAZY_REFERENCE_COUNTS
        self._write_features()

    def _write_features(self) -> None:
        self._write_numbers(INCOMPATIBLE_AT, array("Q", [self._incompatible]))
        self._write_numbers(COMPATIBLE_AT, array("Q", [self._compatible]))
        os.fdatasync(self._descriptor)

    def _write_counts(self) -> None:
        """Write the reference counts, and mark them as valid.

        If there is no room for them, the mark stays.
        """
        counts_end = self._counts_at + self._counts_clusters * self._cluster
        misplaced = self._counts_at % self._cluster or counts_end > self._end
        if self._counts_order != SIXTEEN_BITS or misplaced:
            return
        blocks = self._count_blocks()
        if blocks is None:
            return
        used = self._used()
        per_block = self._cluster // 2
        for which, place in enumerate(blocks):
            block = array("H", list(used[which * per_block : (which + 1) * per_block]))
            block.extend(array("H", bytes(2 * (per_block - len(block)))))
            block.byteswap()
            self._write_file(place, [memoryview(block.tobytes())])
        self._write_numbers(self._counts_at, array("Q", blocks))
        os.fdatasync(self._descriptor)
        self._incompatible &= ~DIRTY
        self._write_features()

    def _count_blocks(self) -> list[int] | None:
        """The blocks of counts for the whole file; None if there is no room for them."""
        room = self._counts_clusters * self._entries
        per_block = self._cluster // 2
        table = _numbers(
            os.pread(self._descriptor, min(ENTRY * room, _LARGEST_FIRST_TABLE), self._counts_at),
            min(room, _LARGEST_FIRST_TABLE // ENTRY),
        )
        blocks: list[int] = []
        while len(blocks) * per_block < self._end // self._cluster:
            if len(blocks) == len(table):
                return None
            known = table[len(blocks)] & ~0x1FF
            bad = not known or known % self._cluster or known >= self._end or known in blocks
            blocks.append(self._allocate(1) if bad else int(known))
        self._blocks = blocks
        return blocks

    def _used(self) -> bytearray:
        """A byte for each cluster of the file: whether it is used."""
        used = bytearray(self._end // self._cluster)

        def mark(place: int, length: int = 1) -> None:
            for index in range(place // self._cluster, -(-(place + length) // self._cluster)):
                if index < len(used):
                    used[index] = 1

        mark(0)
        mark(self._first_at, ENTRY * len(self._first))
        mark(self._counts_at, self._counts_clusters * self._cluster)
        for place in self._blocks:
            mark(place)
        for which, entry in enumerate(self._first):
            if entry & _OFFSET:
                mark(entry & _OFFSET)
                for cluster in self._table(which):
                    if not cluster & _COMPRESSED and cluster & _OFFSET:
                        mark(cluster & _OFFSET)
        return used


def _zero(views: Sequence[memoryview]) -> None:
    for view in views:
        for start in range(0, len(view), len(_ZEROS)):
            piece = view[start : start + len(_ZEROS)]
            piece[:] = _ZEROS[: len(piece)]


def _joined(run: _Run, piece: _Run) -> _Run | None:
    """Both runs in one, if they have the same kind of place."""
    follows = run.kind is not Kind.DATA or piece.place == run.place + run.length
    if run.kind is not piece.kind or run.kind is Kind.COMPRESSED or not follows:
        return None
    return _Run(run.kind, run.length + piece.length, run.place)


def _numbers(data: bytes, count: int) -> array[int]:
    """That many numbers of 8 bytes; zeros after the end of the data."""
    numbers = array("Q", data[: ENTRY * count].ljust(ENTRY * count, b"\0"))
    numbers.byteswap()
    return numbers
