"""The header and first tables of QEMU's format qcow2 (docs/interop/qcow2.txt of QEMU).

A new file has clusters of 64 KiB: header, table of reference counts, their first block, and first
table. To make or grow a disk takes no more of the format.
"""

from __future__ import annotations

import os
import struct

from cerne.errors import ImageError
from cerne.units import counted

MAGIC = b"QFI\xfb"
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")
"""The header of version 3; version 2 lacks the last five members."""
V2_HEADER_SIZE = 72

DIRTY, CORRUPT = 1, 2
"""Incompatible features: the reference counts are not valid; the disk is damaged."""
LAZY_REFERENCE_COUNTS = 1
"""A compatible feature."""
SIXTEEN_BITS = 4
"""The order of reference counts of this size."""
_NEW_CLUSTER_BITS = 16
_BACKING_FORMAT = 0xE2792ACA
_EXTENSION = struct.Struct(">II")
_LONGEST_NAME = 1023
INCOMPATIBLE_AT, COMPATIBLE_AT = 72, 80
"""Where the header has its features."""
ENTRY = 8
"""Bytes of an entry of a table."""
_LARGEST_SIZE = 1 << 56


def mark_in_use(descriptor: int) -> None:
    """Mark the reference counts of a disk as not valid, before anything is written to it.

    The disk's first write would do so, and wait for the medium.

    Raises:
        ImageError: the file is not a disk of version 3.
    """
    head = os.pread(descriptor, HEADER.size, 0)
    if len(head) < HEADER.size or not head.startswith(MAGIC) or HEADER.unpack(head)[1] != 3:
        raise ImageError("the disk is not a qcow2 disk of version 3")
    features = bytearray(head[INCOMPATIBLE_AT : COMPATIBLE_AT + 8])
    # The numbers are big-endian, so their flags are in the last bytes.
    features[7] |= DIRTY
    features[15] |= LAZY_REFERENCE_COUNTS
    os.pwrite(descriptor, features, INCOMPATIBLE_AT)
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
    entries = -(-size // (cluster * (cluster // ENTRY)))
    clusters = 3 - (-entries * ENTRY // cluster)
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
        *(cluster, 1, 0, 0, 0, 0, 0, SIXTEEN_BITS, HEADER.size),
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
    require_known(fields[1], fields[6], fields[13], bits, present)
    cluster = 1 << bits
    wanted = -(-size // (cluster * (cluster // ENTRY)))
    room = -(-entries * ENTRY // cluster) * cluster
    if fields[1] < 3 or size < present or wanted * ENTRY > room:
        most = room // ENTRY * cluster * (cluster // ENTRY)
        raise ImageError(f"it can have {present} to {counted(most, 'byte')}, and not {size}")
    more = (wanted - entries) * ENTRY
    if any(os.pread(descriptor, more, first_at + entries * ENTRY)):
        raise ImageError("the room after its first table is not empty")
    fields[5], fields[7] = size, wanted
    return HEADER.pack(*fields)


def require_known(
    version: int, encryption: int, incompatible: int, cluster_bits: int, size: int
) -> None:
    """Refuse a disk of another version, with other features, or with a damaged header.

    Raises:
        ImageError: so is its header.
    """
    hint = "convert it: qemu-img convert -O qcow2 OLD NEW"
    if version not in (2, 3) or encryption or incompatible & ~(DIRTY | CORRUPT):
        raise ImageError(
            "the disk has features that the native engine does not know, such as encryption, "
            "zstd or subclusters",
            hint=hint,
        )
    if not 9 <= cluster_bits <= 21 or not 0 < size <= _LARGEST_SIZE:
        raise ImageError("the disk's header is damaged", hint=hint)
