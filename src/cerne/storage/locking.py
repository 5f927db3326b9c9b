"""Keeps two machines from writing to one disk, by flock(2) on the open file of the disk.

The lock belongs to the open file, which a machine's process inherits or receives. It lasts until
that process has closed the disk or has ended.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cerne.errors import ConflictError, StorageError


def lock(descriptor: int, path: Path, *, writable: bool) -> None:
    """Lock an open disk: exclusively, or shared with others that only read it.

    Raises:
        ConflictError: another machine has locked it.
    """
    kind = fcntl.LOCK_EX if writable else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        way = "used" if writable else "written to"
        raise ConflictError(
            f"the disk {path} is {way} by another machine",
            hint="detach it there first: cerne disk detach",
        ) from error


def require_unlocked(path: Path, *, writable: bool) -> None:
    """Refuse a disk that `lock` would refuse now.

    Raises:
        ConflictError: another machine has locked it.
        StorageError: opening it failed.
    """
    try:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError as error:
        raise StorageError(f"opening the disk {path} failed: {error.strerror}") from error
    try:
        lock(descriptor, path, writable=writable)
    finally:
        os.close(descriptor)
