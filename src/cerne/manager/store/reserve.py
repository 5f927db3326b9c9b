"""A megabyte kept beside the store, given up where the file system is full.

Stopping and removing machines is what frees space, and SQLite needs some for each of them: for its
write-ahead log and its index (https://sqlite.org/wal.html). Commands that only look do without.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_SIZE = 1 << 20
_LITTLE = 256 << 10
_PLENTY = 8 * _SIZE
_SURELY_FREE = 64 * _SIZE


class Reserve:
    """The reserve of one store."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make_room(self) -> None:
        """Give the reserve up where there is little room, and make it anew where there is plenty.

        The transaction that needs the room fails with what goes wrong here, and says it.
        """
        with contextlib.suppress(OSError):
            if self.is_needed():
                self._path.unlink(missing_ok=True)
            elif not self._path.exists() and _has_room(self._path.parent, _PLENTY):
                self._make()

    def is_needed(self) -> bool:
        """Whether there is too little room for a transaction of the store."""
        with contextlib.suppress(OSError):
            return not _has_room(self._path.parent, _LITTLE)
        return False

    def _make(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)
        finally:
            os.close(descriptor)


def _has_room(directory: Path, size: int) -> bool:
    """Whether so many bytes can be written there."""
    status = os.statvfs(directory)
    if status.f_bavail * status.f_frsize > _SURELY_FREE:
        return True
    # What ext4 tells root is free includes clusters that take no data: a file has to be tried.
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return False
        return status.f_bavail * status.f_frsize > size
    return True
