"""Reads the header of a disk image of unknown origin, before any other program reads it.

An image that refers to another file could make its reader open that file, and the first write
destroys an image that is used as a raw disk by mistake: such images are refused. An image without a
known signature is a raw disk; for a raw disk with a signature the user must say that it is raw.
Formats: docs/interop/qcow2.txt of QEMU; the VMDK specification 5.0; VDI headers; [MS-VHDX]; the
Virtual Hard Disk Image Format Specification 1.0.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from cerne.errors import ImageError, InputError, NotFoundError
from cerne.storage.signatures import SECTOR, Signature, signature_of
from cerne.units import counted

RAW = "raw"

_QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_DIRTY, _QCOW2_CORRUPT, _QCOW2_EXTERNAL_DATA = 1, 2, 4
# These, zstd compression of clusters, and subclusters.
_QCOW2_KNOWN_INCOMPATIBLE = 0b11111
_VMDK_HEADER = struct.Struct("<4sIIQQQQIQQ")
_VMDK_LARGEST_DESCRIPTOR = 1 << 20
# QEMU reads so much of a descriptor, and ignores the length in the header.
_VMDK_SMALLEST_DESCRIPTOR = 20 * SECTOR
_VMDK_HEADER_AT_END = (1 << 64) - 1
_VMDK_FOOTER = 1024
_VMDK_UNCLEAN_AT = 72
_VHDX_HEADERS = (64 << 10, 128 << 10)
_VHDX_SEQUENCE_AT, _VHDX_LOG_AT = 8, 48
_GUID = 16
_VHD_FOOTER = struct.Struct(">8sIIQIIIIQQIII16sB")
_VHD_FIXED, _VHD_DYNAMIC, _VHD_DIFFERENCING = 2, 3, 4


@dataclass(frozen=True, slots=True)
class DiskFormat:
    """A disk image's format, and its size as a guest sees it."""

    format: str
    """The name that qemu-img uses."""
    virtual_size: int | None
    """Bytes; None if the header has no size."""
    dirty: bool = False
    """Whether it was not closed in order; a program that opens it for writing repairs it."""


@dataclass(frozen=True, slots=True)
class _Source:
    """An open file that is examined."""

    path: Path
    file: BinaryIO
    size: int
    head: bytes
    tail: bytes
    """The last sector; `head` is the first."""

    def at(self, offset: int, length: int) -> bytes:
        """The bytes at an offset; fewer at the end of the file."""
        self.file.seek(offset)
        return self.file.read(length)


def require_self_contained(path: Path, named: str | None = None) -> DiskFormat:
    """The format of a disk image that refers to no other file.

    Args:
        named: the format that its owner gave; ``raw`` is accepted with any signature.

    Raises:
        InputError: there is no such format.
        ImageError: it is not a disk image, is truncated, damaged or encrypted, has another format
            than `named`, or refers to another file.
    """
    with _opened(path) as source:
        found = _recognised(source, named, "--format raw")
        if found is None:
            return _raw(source)
    if found.dirty:
        raise _damaged(
            path,
            "it was not closed in order",
            f"repair it first: qemu-img check -r all -f {found.format} {path}",
        )
    return found


def data_disk_format(path: Path, named: str | None = None) -> Literal["raw", "qcow2"]:
    """The format in which a file or a device of this host is used as a disk: ``qcow2`` or ``raw``.

    A file without a known signature is a raw disk. `named` is as in `require_self_contained`.

    Raises:
        NotFoundError: there is no such file.
        InputError: there is no such format.
        ImageError: it is not usable as a disk, is damaged, refers to another file, or has another
            format.
    """
    with _opened(path) as source:
        found = _recognised(source, named, f"{path}:format=raw")
        if found is None or found.format == RAW:
            _require_sectors(source)
            return "raw"
        if found.format == "qcow2":
            return "qcow2"
    raise ImageError(
        f"{path} has the format {found.format}, which Cerne does not use for disks",
        hint=f"{_convert(path, found.format)}\n{_say(f'{path}:format=raw')}",
    )


def _recognised(source: _Source, named: str | None, say_raw: str) -> DiskFormat | None:
    """The format in a file's header; None if it has no known signature.

    `say_raw` is what the user types to use the file as a raw disk.
    """
    if named == RAW:
        return DiskFormat(RAW, _require_sectors(source))
    if named is not None and named not in _READERS:
        raise InputError(
            f"{named!r} is not a disk format that Cerne takes",
            hint=f"take one of {', '.join([RAW, *_READERS])}",
        )
    signature = signature_of(source.head, source.tail)
    found = "raw" if signature is None else signature.format
    if named is not None and named != found:
        raise ImageError(
            f"{source.path} does not have the format {named}: it looks like {found}",
            hint="leave the format out, or give the right one",
        )
    if signature is None:
        return None
    reader = _READERS.get(signature.format)
    if reader is None:
        raise _not_taken(source.path, signature, say_raw)
    try:
        return reader(source)
    except ImageError as error:
        raise ImageError(error.message, hint=f"{error.hint}\n{_say(say_raw)}") from error


def _qcow2(source: _Source) -> DiskFormat:
    path, head = source.path, source.head
    if len(head) < SECTOR:
        raise _cut_off(path)
    (_, version, backing_offset, _, cluster_bits, virtual_size, crypt, l1_size, l1_offset, *_) = (
        _QCOW2_HEADER.unpack_from(head)
    )
    if version not in (2, 3):
        raise _damaged(path, f"its version {version} is unknown")
    if backing_offset:
        raise _refers(path, "qcow2", "it has a backing file")
    if crypt:
        raise _damaged(path, "it is encrypted")
    if not 9 <= cluster_bits <= 21:
        raise _damaged(path, f"a cluster has a size of 2^{cluster_bits}")
    features: int = struct.unpack_from(">Q", head, 72)[0] if version == 3 else 0
    if features & _QCOW2_EXTERNAL_DATA:
        raise _refers(path, "qcow2", "its data is in another file")
    if features & _QCOW2_CORRUPT:
        raise _damaged(
            path,
            "it is marked as corrupt",
            f"see what is wrong, and repair a copy of it: qemu-img check -r all -f qcow2 {path}",
        )
    unknown = features & ~_QCOW2_KNOWN_INCOMPATIBLE
    if unknown:
        raise _damaged(path, f"it has unknown features (bits {unknown:#x})")
    if l1_offset + 8 * l1_size > source.size:
        raise _cut_off(path)
    return DiskFormat("qcow2", virtual_size, dirty=bool(features & _QCOW2_DIRTY))


def _vmdk(source: _Source) -> DiskFormat:
    path, head = source.path, source.head
    if not head.startswith(b"KDMV"):
        raise _refers(path, "vmdk", "it is one file of a VMDK of several files")
    if len(head) < SECTOR:
        raise _cut_off(path)
    (_, _, _, capacity, _, offset, length, _, _, directory) = _VMDK_HEADER.unpack_from(head)
    if capacity == 0:
        # QEMU would then read its descriptor as one that names other files.
        raise _refers(path, "vmdk", "it is a VMDK descriptor, which names the files with the data")
    if length * SECTOR > _VMDK_LARGEST_DESCRIPTOR or (offset + length) * SECTOR > source.size:
        raise _damaged(path, "its descriptor is cut off")
    if directory == _VMDK_HEADER_AT_END:
        # QEMU counts from the end of the last sector, even if the file ends inside of it.
        end = -(-source.size // SECTOR) * SECTOR
        footer = source.at(max(0, end - _VMDK_FOOTER), SECTOR).ljust(SECTOR, b"\0")
        if _VMDK_HEADER.unpack_from(footer)[:7] != _VMDK_HEADER.unpack_from(head)[:7]:
            raise _damaged(path, "its two headers differ, or its end is cut off")
    descriptor = source.at(offset * SECTOR, max(length * SECTOR, _VMDK_SMALLEST_DESCRIPTOR))
    # QEMU looks for the parent in the second sector, wherever the header has the descriptor.
    in_second = source.at(SECTOR, _VMDK_SMALLEST_DESCRIPTOR)
    if any(b"parentFileNameHint" in text for text in (descriptor, in_second)):
        raise _refers(path, "vmdk", "it has a parent disk")
    lines = [line.strip() for line in descriptor.split(b"\0")[0].splitlines()]
    extents = [line for line in lines if line.startswith((b"RW ", b"RDONLY ", b"NOACCESS "))]
    if len(extents) > 1 or any(b" SPARSE " not in extent for extent in extents):
        raise _refers(path, "vmdk", "its data is in other files")
    if head[_VMDK_UNCLEAN_AT]:
        raise _damaged(
            path,
            "it was not closed in order",
            f"open it with what wrote it, or {_convert(path, 'vmdk')}",
        )
    return DiskFormat("vmdk", capacity * SECTOR)


def _vdi(source: _Source) -> DiskFormat:
    if len(source.head) < SECTOR:
        raise _cut_off(source.path)
    image_type = struct.unpack_from("<I", source.head, 76)[0]
    if image_type not in (1, 2):
        raise _refers(source.path, "vdi", "it is a differencing disk")
    return DiskFormat("vdi", struct.unpack_from("<Q", source.head, 368)[0])


def _vhdx(source: _Source) -> DiskFormat:
    """qemu-img reads its size from a region, and refuses differencing disks itself."""
    headers = [source.at(place, SECTOR).ljust(SECTOR, b"\0") for place in _VHDX_HEADERS]
    whole = [header for header in headers if header.startswith(b"head")]
    if not whole:
        raise _cut_off(source.path)
    current = max(whole, key=lambda h: int(struct.unpack_from("<Q", h, _VHDX_SEQUENCE_AT)[0]))
    log = current[_VHDX_LOG_AT : _VHDX_LOG_AT + _GUID]
    return DiskFormat("vhdx", None, dirty=log != bytes(_GUID))


def _vpc(source: _Source) -> DiskFormat:
    path = source.path
    dynamic = source.head.startswith(b"conectix")
    footer = source.head if dynamic else source.tail
    if len(footer) < SECTOR or not footer.startswith(b"conectix"):
        raise _damaged(path, "its footer is incomplete", _convert(path, "vpc"))
    fields = _VHD_FOOTER.unpack_from(footer)
    size, kind = fields[9], fields[11]
    if kind == _VHD_DIFFERENCING:
        raise _refers(path, "vpc", "it is a differencing disk")
    if kind != (_VHD_DYNAMIC if dynamic else _VHD_FIXED):
        raise _damaged(path, f"its kind of VHD, {kind}, is unknown")
    if not dynamic and size > source.size - SECTOR:
        raise _cut_off(path)
    return DiskFormat("vpc", size)


_READERS: dict[str, Callable[[_Source], DiskFormat]] = {
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vdi": _vdi,
    "vhdx": _vhdx,
    "vpc": _vpc,
}
"""The reader of the header of each format that Cerne takes."""


def _raw(source: _Source) -> DiskFormat:
    """A raw disk or an ISO: it has a boot signature, partition table or known file system."""
    head = source.head
    bootable = head[510:512] == b"\x55\xaa"
    known = any(
        source.at(offset, len(magic)) == magic
        for offset, magic in (
            (512, b"EFI PART"),
            (1080, b"\x53\xef"),
            (32769, b"CD001"),
            (0, b"XFSB"),
            (65600, b"_BHRfS_M"),
            (0, b"hsqs"),
        )
    )
    if source.size % SECTOR or not (bootable or known or head == bytes(SECTOR)):
        raise ImageError(
            f"{source.path} is not a disk image",
            hint=f"{', '.join(_READERS)}, raw and ISO are the formats that Cerne takes;"
            " if it is a raw disk, add: --format raw",
        )
    return DiskFormat(RAW, source.size)


def _require_sectors(source: _Source) -> int:
    """The size of a raw disk, in bytes."""
    if source.size == 0 or source.size % SECTOR:
        raise ImageError(
            f"{source.path} has {counted(source.size, 'byte')}, which is not a whole number of"
            " sectors "
            f"of {SECTOR}",
            hint="give a size to make an empty disk: cerne disk attach NAME 10G",
        )
    return source.size


@contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """Open a file or a block device; refuse a pipe, which could block for ever."""
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageError(
                f"{path} is neither a file nor a block device", hint="give the path of a disk"
            )
        file = path.open("rb")
    except OSError as error:
        raise NotFoundError(
            f"reading the disk {path} failed: {error.strerror}", hint=f"see: ls -l {path}"
        ) from error
    with file:
        head = file.read(SECTOR)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - SECTOR))
        yield _Source(path, file, size, head, file.read(SECTOR))


def _not_taken(path: Path, signature: Signature, say_raw: str) -> ImageError:
    if signature.unpack:
        return ImageError(
            f"{path} is not a disk image but {signature.words}",
            hint=f"unpack it first: {signature.unpack} {path}",
        )
    return ImageError(
        f"{path} is {signature.words}, which Cerne does not take",
        hint=f"{_convert(path, signature.format)}\n{_say(say_raw)}",
    )


def _say(say_raw: str) -> str:
    return f"if it is a raw disk that only looks so, type: {say_raw}"


def _convert(path: Path, format_: str) -> str:
    if format_ == "vpc":
        # QEMU's default size is from the geometry, which may cut off the end.
        options = f"driver=vpc,force_size_calc=current_size,file.filename={path}"
        return f"convert it first: qemu-img convert --image-opts {options} -O qcow2 disk.qcow2"
    return f"convert it first: qemu-img convert -f {format_} -O qcow2 {path} disk.qcow2"


def _cut_off(path: Path) -> ImageError:
    return _damaged(path, "it is cut off")


def _damaged(path: Path, why: str, hint: str = "fetch it again, or convert it") -> ImageError:
    return ImageError(f"{path} is not usable: {why}", hint=hint)


def _refers(path: Path, format_: str, why: str) -> ImageError:
    return ImageError(
        f"{path} refers to other files: {why}",
        hint="if you trust it, merge the files: "
        f"qemu-img convert -f {format_} -O qcow2 {path} whole.qcow2",
    )
