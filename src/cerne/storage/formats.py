"""What a disk image of unknown origin says of itself, read here before any other program reads it.

An image that refers to another file could make whoever opens it read that file: such images are
refused. Formats: docs/interop/qcow2.txt of QEMU; the VMDK specification 5.0; VDI and VHDX headers.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from cerne.errors import ImageError, NotFoundError

_QCOW2 = b"QFI\xfb"
_VMDK_SPARSE = b"KDMV"
_VMDK_TEXT = b"# Disk DescriptorFile"
_VDI = 0xBEDA107F
_VHDX = b"vhdxfile"
_SECTOR = 512

_QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_EXTERNAL_DATA = 1 << 2
_QCOW2_KNOWN_INCOMPATIBLE = 0b11111
_VMDK_HEADER = struct.Struct("<4sIIQQQQIQQ")
_VMDK_LARGEST_DESCRIPTOR = 1 << 20
# QEMU reads so much of a descriptor, whatever length the header gives it.
_VMDK_SMALLEST_DESCRIPTOR = 20 * _SECTOR
_VMDK_HEADER_AT_END = (1 << 64) - 1
_VMDK_FOOTER = 1024


@dataclass(frozen=True, slots=True)
class DiskFormat:
    """A disk image's format, and its size as a guest would see it."""

    format: str
    """As qemu-img names it."""
    virtual_size: int | None
    """Bytes; None where the header does not tell."""


def require_self_contained(path: Path) -> DiskFormat:
    """The format of a disk image that refers to no other file.

    Raises:
        ImageError: it is no disk image, is truncated or encrypted, or refers to another file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_SECTOR)
        if head.startswith(_VMDK_TEXT):
            raise _refers(path, "it is a VMDK descriptor, which names the files that hold the data")
        if len(head) < _SECTOR:
            raise _no_image(path)
        if head.startswith(_QCOW2):
            return _qcow2(path, head, size)
        if head.startswith(_VMDK_SPARSE):
            return _vmdk(path, file, head, size)
        if head.startswith(_VHDX):
            # Its size lies in a region that qemu-img reads; differencing disks it refuses itself.
            return DiskFormat("vhdx", None)
        if struct.unpack_from("<I", head, 64)[0] == _VDI:
            return _vdi(path, head)
        return _raw(path, file, head, size)


def data_disk_format(path: Path) -> Literal["raw", "qcow2"]:
    """``qcow2`` or ``raw``: how a file or a device of this host is used as a disk.

    What is in no format that is known is a raw disk, whatever is on it.

    Raises:
        NotFoundError: there is no such file.
        ImageError: it cannot be a disk, refers to another file, or is in another format.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_SECTOR)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise NotFoundError(f"the disk {path} cannot be read: {error.strerror}") from error
    if head.startswith(_QCOW2) and len(head) == _SECTOR:
        _qcow2(path, head, size)
        return "qcow2"
    foreign = head.startswith((_VMDK_SPARSE, _VMDK_TEXT, _VHDX))
    if foreign or (len(head) >= 68 and struct.unpack_from("<I", head, 64)[0] == _VDI):
        raise ImageError(
            f"{path} is in a format that machines do not use as it is",
            hint=f"convert it first: qemu-img convert -O qcow2 {path} disk.qcow2",
        )
    if size == 0 or size % _SECTOR:
        raise ImageError(
            f"{path} is {size} bytes long, and a disk is whole sectors of {_SECTOR}",
            hint="give a size to have an empty disk made: cerne disk attach NAME 10G",
        )
    return "raw"


def _qcow2(path: Path, head: bytes, size: int) -> DiskFormat:
    (_, version, backing_offset, _, cluster_bits, virtual_size, crypt, l1_size, l1_offset, *_) = (
        _QCOW2_HEADER.unpack_from(head)
    )
    if version not in (2, 3):
        raise _damaged(path, f"it is of version {version}")
    if backing_offset:
        raise _refers(path, "it has a backing file")
    if crypt:
        raise _damaged(path, "it is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise _damaged(path, f"its clusters are of 2^{cluster_bits} bytes")
    if version == 3:
        features = struct.unpack_from(">Q", head, 72)[0]
        if features & _QCOW2_EXTERNAL_DATA:
            raise _refers(path, "its data is in another file")
        if features & ~_QCOW2_KNOWN_INCOMPATIBLE:
            raise _damaged(path, "it has features that are not known")
    if l1_offset + 8 * l1_size > size:
        raise _damaged(path, "it is cut off")
    return DiskFormat("qcow2", virtual_size)


def _vmdk(path: Path, file: BinaryIO, head: bytes, size: int) -> DiskFormat:
    (_, _, _, capacity, _, offset, length, _, _, directory) = _VMDK_HEADER.unpack_from(head)
    if capacity == 0:
        # Its descriptor would then be read as one that names other files.
        raise _refers(path, "it is a VMDK descriptor, which names the files that hold the data")
    if length * _SECTOR > _VMDK_LARGEST_DESCRIPTOR or (offset + length) * _SECTOR > size:
        raise _damaged(path, "its descriptor is cut off")
    if directory == _VMDK_HEADER_AT_END:
        file.seek(max(0, size - _VMDK_FOOTER))
        footer = file.read(_SECTOR).ljust(_SECTOR, b"\0")
        if _VMDK_HEADER.unpack_from(footer)[:7] != _VMDK_HEADER.unpack_from(head)[:7]:
            raise _damaged(path, "its two headers differ, or its end is cut off")
    file.seek(offset * _SECTOR)
    descriptor = file.read(max(length * _SECTOR, _VMDK_SMALLEST_DESCRIPTOR))
    if b"parentFileNameHint" in descriptor:
        raise _refers(path, "it has a parent disk")
    lines = [line.strip() for line in descriptor.split(b"\0")[0].splitlines()]
    extents = [line for line in lines if line.startswith((b"RW ", b"RDONLY ", b"NOACCESS "))]
    if len(extents) > 1 or any(b" SPARSE " not in extent for extent in extents):
        raise _refers(path, "its data is in other files")
    return DiskFormat("vmdk", capacity * _SECTOR)


def _vdi(path: Path, head: bytes) -> DiskFormat:
    image_type = struct.unpack_from("<I", head, 76)[0]
    if image_type not in (1, 2):
        raise _refers(path, "it is a differencing disk")
    return DiskFormat("vdi", struct.unpack_from("<Q", head, 368)[0])


def _raw(path: Path, file: BinaryIO, head: bytes, size: int) -> DiskFormat:
    """A raw disk or an ISO: it has a boot signature, a partition table or a known file system."""
    if size % _SECTOR:
        raise _no_image(path)
    bootable = head[510:512] == b"\x55\xaa"
    known = any(
        _at(file, offset, len(magic)) == magic
        for offset, magic in (
            (512, b"EFI PART"),
            (1080, b"\x53\xef"),
            (32769, b"CD001"),
            (0, b"XFSB"),
            (65600, b"_BHRfS_M"),
            (0, b"hsqs"),
        )
    )
    if not bootable and not known and head != bytes(_SECTOR):
        raise _no_image(path)
    return DiskFormat("raw", size)


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _no_image(path: Path) -> ImageError:
    return ImageError(
        f"{path} is no disk image",
        hint="qcow2, raw, vmdk, vdi, vhdx and ISO are taken; unpack archives first",
    )


def _damaged(path: Path, why: str) -> ImageError:
    return ImageError(f"{path} cannot be used: {why}", hint="fetch it again, or convert it")


def _refers(path: Path, why: str) -> ImageError:
    return ImageError(
        f"{path} refers to other files: {why}",
        hint=f"make it whole where you trust it: qemu-img convert -O qcow2 {path} whole.qcow2",
    )
