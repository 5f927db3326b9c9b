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
import struct
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from cerne.devices.block.disk import Disk
from cerne.devices.virtio.buffers import scatter, size_of, split
from cerne.errors import ImageError
from cerne.kvm.fallocate import KEEP_SIZE, PUNCH_HOLE, fallocate
from cerne.units import counted

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
"""The header of version 3; version 2 lacks the last five members."""
V2_HEADER_SIZE = 72

_DIRTY, _CORRUPT = 1, 2
_LAZY_REFERENCE_COUNTS = 1
_SIXTEEN_BITS = 4
_NEW_CLUSTER_BITS = 16
_BACKING_FORMAT = 0xE2792ACA
_EXTENSION = struct.Struct(">II")
_LONGEST_NAME = 1023
_INCOMPATIBLE_AT, _COMPATIBLE_AT = 72, 80

_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_ENTRY = 8
_COMPRESSED_SECTOR = 512

_LARGEST_FIRST_TABLE = 32 << 20
_LARGEST_SIZE = 1 << 56
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
            fields[13:] if version >= 3 else (0, 0, 0, _SIXTEEN_BITS, 0)
        )
        self._incompatible = incompatible
        self._counts_order = counts_order
        _check(version, encryption, incompatible, self._cluster_bits, self.size)
        if bool(backing_at) != (backing is not None):
            raise ImageError(
                "the disk's header and the configuration disagree about a backing file"
            )
        if not read_only and (version < 3 or snapshots or incompatible & _CORRUPT):
            raise ImageError(
                "the native engine does not write this disk: it has version 2, is damaged, "
                "or has snapshots",
                hint="convert it: qemu-img convert -O qcow2 OLD NEW",
            )
        self._cluster = 1 << self._cluster_bits
        self._entries = self._cluster // _ENTRY
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
            if self._incompatible & _DIRTY and not self._read_only:
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
        if count < needed or _ENTRY * needed > _LARGEST_FIRST_TABLE or self._first_at % 512:
            raise ImageError("the disk's first table is damaged")
        if self._first_at + _ENTRY * needed > os.fstat(self._descriptor).st_size:
            raise ImageError("the disk is cut off")
        return _numbers(os.pread(self._descriptor, _ENTRY * needed, self._first_at), needed)

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
            self._write_numbers(self._first_at + _ENTRY * which, self._first[which : which + 1])
            return
        table = self._table(which)
        table[within : within + len(entries)] = array("Q", entries)
        place = self._place(self._first[which]) + _ENTRY * within
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
        if self._incompatible & _DIRTY:
            return
        self._incompatible |= _DIRTY
        self._compatible |= _LAZY_REFERENCE_COUNTS
        self._write_features()

    def _write_features(self) -> None:
        self._write_numbers(_INCOMPATIBLE_AT, array("Q", [self._incompatible]))
        self._write_numbers(_COMPATIBLE_AT, array("Q", [self._compatible]))
        os.fdatasync(self._descriptor)

    def _write_counts(self) -> None:
        """Write the reference counts, and mark them as valid.

        If there is no room for them, the mark stays.
        """
        counts_end = self._counts_at + self._counts_clusters * self._cluster
        misplaced = self._counts_at % self._cluster or counts_end > self._end
        if self._counts_order != _SIXTEEN_BITS or misplaced:
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
        self._incompatible &= ~_DIRTY
        self._write_features()

    def _count_blocks(self) -> list[int] | None:
        """The blocks of counts for the whole file; None if there is no room for them."""
        room = self._counts_clusters * self._entries
        per_block = self._cluster // 2
        table = _numbers(
            os.pread(self._descriptor, min(_ENTRY * room, _LARGEST_FIRST_TABLE), self._counts_at),
            min(room, _LARGEST_FIRST_TABLE // _ENTRY),
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
        mark(self._first_at, _ENTRY * len(self._first))
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


def mark_in_use(descriptor: int) -> None:
    """Mark the reference counts of a disk as not valid, before anything is written to it.

    The disk's first write would do so, and wait for the medium.

    Raises:
        ImageError: the file is not a disk of version 3.
    """
    head = os.pread(descriptor, HEADER.size, 0)
    if len(head) < HEADER.size or not head.startswith(MAGIC) or HEADER.unpack(head)[1] != 3:
        raise ImageError("the disk is not a qcow2 disk of version 3")
    features = bytearray(head[_INCOMPATIBLE_AT : _COMPATIBLE_AT + 8])
    # The numbers are big-endian, so their flags are in the last bytes.
    features[7] |= _DIRTY
    features[15] |= _LAZY_REFERENCE_COUNTS
    os.pwrite(descriptor, features, _INCOMPATIBLE_AT)
    os.fdatasync(descriptor)


def empty_head(size: int) -> dict[int, bytes]:
    """The head of an empty disk of `size` bytes without a backing file.

    Raises:
        ImageError: the size or the name has no room in the header.
    """
    return overlay_head(size, b"", "raw")


def overlay_head(size: int, backing: bytes, backing_format: str) -> dict[int, bytes]:
    """The head of an empty overlay of `size` bytes: pieces of the file by their offset.

    Clusters are of 64 KiB: header, table of reference counts, their first block, first table.

    Raises:
        ImageError: the size or the name has no room in the header.
    """
    cluster = 1 << _NEW_CLUSTER_BITS
    entries = -(-size // (cluster * (cluster // _ENTRY)))
    clusters = 3 - (-entries * _ENTRY // cluster)
    form = backing_format.encode()
    extension = b""
    if backing:
        extension = _EXTENSION.pack(_BACKING_FORMAT, len(form)) + form.ljust(
            -(-len(form) // 8) * 8, b"\0"
        )
    name_at = HEADER.size + len(extension) + _EXTENSION.size
    if name_at + len(backing) > cluster or len(backing) > _LONGEST_NAME or size <= 0:
        raise ImageError(
            f"an overlay of {counted(size, 'byte')} on {os.fsdecode(backing)} is larger than"
            " the format allows"
        )
    header = HEADER.pack(
        *(
            MAGIC,
            3,
            name_at if backing else 0,
            len(backing),
            _NEW_CLUSTER_BITS,
            size,
            0,
            entries,
            3 * cluster,
        ),
        *(cluster, 1, 0, 0, 0, 0, 0, _SIXTEEN_BITS, HEADER.size),
    )
    counts = struct.pack(f">{clusters}H", *([1] * clusters))
    return {
        0: header + extension + bytes(_EXTENSION.size) + backing,
        cluster: struct.pack(">Q", 2 * cluster),
        2 * cluster: counts,
        clusters * cluster - 1: b"\0",
    }


def larger_head(descriptor: int, size: int) -> bytes:
    """The header of a disk with `size` bytes in place of fewer, for its file.

    Raises:
        ImageError: the disk has another version, is larger, or its first table has no room.
    """
    header = os.pread(descriptor, HEADER.size, 0)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise ImageError("the disk does not have the format qcow2")
    fields = list(HEADER.unpack(header))
    bits, present, entries, first_at = fields[4], fields[5], fields[7], fields[8]
    _check(fields[1], fields[6], fields[13], bits, present)
    cluster = 1 << bits
    wanted = -(-size // (cluster * (cluster // _ENTRY)))
    room = -(-entries * _ENTRY // cluster) * cluster
    if fields[1] < 3 or size < present or wanted * _ENTRY > room:
        most = room // _ENTRY * cluster * (cluster // _ENTRY)
        raise ImageError(f"it can have {present} to {counted(most, 'byte')}, and not {size}")
    more = (wanted - entries) * _ENTRY
    if any(os.pread(descriptor, more, first_at + entries * _ENTRY)):
        raise ImageError("the room after its first table is not empty")
    fields[5], fields[7] = size, wanted
    return HEADER.pack(*fields)


def _check(version: int, encryption: int, incompatible: int, cluster_bits: int, size: int) -> None:
    hint = "convert it: qemu-img convert -O qcow2 OLD NEW"
    if version not in (2, 3) or encryption or incompatible & ~(_DIRTY | _CORRUPT):
        raise ImageError(
            "the disk has features that the native engine does not know, such as encryption, "
            "zstd or subclusters",
            hint=hint,
        )
    if not 9 <= cluster_bits <= 21 or not 0 < size <= _LARGEST_SIZE:
        raise ImageError("the disk's header is damaged", hint=hint)


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
    numbers = array("Q", data[: _ENTRY * count].ljust(_ENTRY * count, b"\0"))
    numbers.byteswap()
    return numbers
