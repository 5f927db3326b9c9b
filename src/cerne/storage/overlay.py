"""Makes a machine's own disk: a qcow2 overlay of an image's disk, which never changes."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from pathlib import Path

from cerne.devices.block.qcow2_head import MAGIC, empty_head, larger_head, mark_in_use, overlay_head
from cerne.errors import DamagedError, ImageError, StorageError

_MOST_FILES = 256
_HEADER = struct.Struct(">4sIQIIQ")
_SIZE_MEMBER = 5
_BACKING_FORMAT = 0xE2792ACA
_EXTENSION = struct.Struct(">II")
_HEADER_LENGTH_OFFSET = 100
_V2_HEADER_LENGTH = 72
_LONGEST_NAME = 1023
_FIRST_CLUSTER = 64 * 1024


def create_overlay(backing: Path, backing_format: str, path: Path, size: int | None = None) -> None:
    """Make a qcow2 overlay of `size` bytes, or as large as its backing file.

    Raises:
        StorageError: writing failed; no file is left.
        DamagedError: the backing file is unreadable.
    """
    size = size or virtual_size(backing, backing_format)
    _write(path, overlay_head(size, os.fsencode(backing.absolute()), backing_format))


def create_empty(path: Path, size: int) -> None:
    """Make an empty qcow2 disk of `size` bytes without a backing file.

    Raises:
        StorageError: writing failed; no file is left.
    """
    _write(path, empty_head(size))


def grow(path: Path, size: int) -> None:
    """Grow an unused qcow2 disk to `size` bytes; the new ones read as zeros.

    The header is written in one piece, so that a killed process leaves the old or the new size.

    Raises:
        StorageError: writing failed, or the table of the disk has no room.
        DamagedError: it is not a qcow2 disk.
    """
    try:
        with path.open("r+b", buffering=0) as file:
            head = larger_head(file.fileno(), size)
            os.pwrite(file.fileno(), head, 0)
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"growing the disk {path} failed: {error.strerror}",
            hint=f"free some space: df -h {path.parent}",
        ) from error
    except ImageError as error:
        raise DamagedError(f"the disk {path} does not grow: {error.message}") from error


def expect_writes(path: Path) -> None:
    """Write what a first write to an overlay has to write before it, so that it need not wait.

    Raises:
        StorageError: writing failed.
        ImageError: it is not an overlay that `create_overlay` made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            mark_in_use(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(
            f"writing to the disk {path} failed: {error.strerror}",
            hint=f"free some space: df -h {path.parent}",
        ) from error


def _write(path: Path, head: Mapping[int, bytes]) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for place, content in head.items():
                os.pwrite(descriptor, content, place)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileExistsError as error:
        raise StorageError(f"the disk {path} exists already") from error
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(
            f"making the disk {path} failed: {error.strerror}",
            hint=f"free some space: df -h {path.parent}",
        ) from error


def virtual_size(path: Path, form: str) -> int:
    """Bytes of a disk as a guest sees it.

    Raises:
        DamagedError: the file is unreadable.
    """
    try:
        with path.open("rb") as file:
            if form != "qcow2":
                return file.seek(0, os.SEEK_END)
            head = file.read(_HEADER.size)
    except OSError as error:
        raise DamagedError(f"reading the disk {path} failed: {error.strerror}") from error
    if not head.startswith(MAGIC) or len(head) < _HEADER.size:
        raise DamagedError(f"the disk {path} does not have the format qcow2")
    size: int = _HEADER.unpack_from(head)[_SIZE_MEMBER]
    return size


def chain(path: Path, form: str) -> list[tuple[Path, str]]:
    """A disk's file and the backing files under it, the top first, each with its format.

    Raises:
        DamagedError: a file is unreadable, or there are more than any machine has.
    """
    files = [(path, form)]
    while files[-1][1] == "qcow2":
        backing = backing_of(files[-1][0])
        if backing is None:
            break
        if len(files) == _MOST_FILES:
            raise DamagedError(f"{path} has more than {_MOST_FILES} backing files under it")
        files.append(backing)
    return files


def backing_of(path: Path) -> tuple[Path, str] | None:
    """The file under a qcow2 file and its format, if it has one.

    Raises:
        DamagedError: it is unreadable, or does not name the format of its backing file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_FIRST_CLUSTER)
    except OSError as error:
        raise DamagedError(f"reading the disk {path} failed: {error.strerror}") from error
    if not head.startswith(MAGIC) or len(head) < _HEADER_LENGTH_OFFSET + 4:
        raise DamagedError(f"the disk {path} does not have the format qcow2")
    _, version, offset, length, *_ = _HEADER.unpack_from(head)
    if offset == 0:
        return None
    if length > _LONGEST_NAME or offset + length > len(head):
        raise DamagedError(f"the disk {path} names no valid backing file")
    name = Path(os.fsdecode(head[offset : offset + length]))
    form = _extensions(head, version).get(_BACKING_FORMAT)
    if form is None:
        raise DamagedError(f"the disk {path} does not name the format of its backing file {name}")
    return path.parent / name, form.decode(errors="replace")


def _extensions(head: bytes, version: int) -> dict[int, bytes]:
    """The extensions of a header by their kind (docs/interop/qcow2.txt of QEMU)."""
    at = _V2_HEADER_LENGTH
    if version >= 3:
        at = int.from_bytes(head[_HEADER_LENGTH_OFFSET : _HEADER_LENGTH_OFFSET + 4], "big")
    found = {}
    while at + _EXTENSION.size <= len(head):
        kind, length = _EXTENSION.unpack_from(head, at)
        if kind == 0:
            break
        at += _EXTENSION.size
        found[kind] = head[at : at + length]
        at += length + 7 & ~7
    return found
