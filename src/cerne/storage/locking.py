"""Keeping two machines from writing to one disk: flock(2) on the file that a machine's process has.

The lock belongs to the open file, which the process inherits or is sent: it lasts for as long as
that process has the disk, and ends with it, however it ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from cerne.errors import ConflictError, StorageError


def lock(descriptor: int, path: Path, *, writable: bool) -> None:
    """Lock an open disk: for this user of it alone, or among all that only read it.

    Raises:
        ConflictError: another has locked it.
    """
    kind = fcntl.LOCK_EX if writable else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
        way = "used" if writable else "written to"
        raise ConflictError(
            f"the disk {path} is being {way} by another machine",
            hint="take it out there first: cerne disk detach",
        ) from error


def require_unlocked(path: Path, *, writable: bool) -> None:
    """Refuse a disk that `lock` would refuse now.

    Raises:
        ConflictError: another has locked it.
        StorageError: it cannot be opened.
    """
    try:
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError as error:
        raise StorageError(f"the disk {path} cannot be opened: {error.strerror}") from error
    try:
        lock(descriptor, path, writable=writable)
    finally:
        os.close(descriptor)
