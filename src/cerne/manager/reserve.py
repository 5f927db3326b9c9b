"""A megabyte kept beside the store, given up where the file system is full.

Stopping and removing machines is what frees space, and SQLite needs some for each of them: for its
write-ahead log and its index (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_SIZE = 1 << 20
_LITTLE = 256 << 10
_PLENTY = 8 * _SIZE


class Reserve:
    """The reserve of one store."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make_room(self) -> None:
        """Give the reserve up where there is little room, and make it anew where there is plenty.

        What goes wrong here is met again, and told, by whoever needs the room.
        """
        with contextlib.suppress(OSError):
            room = _room(self._path.parent)
            if room < _LITTLE:
                self._path.unlink(missing_ok=True)
            elif room > _PLENTY and not self._path.exists():
                self._make()

    def _make(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _SIZE)
        finally:
            os.close(descriptor)


def _room(directory: Path) -> int:
    """Bytes that this user may still write there."""
    status = os.statvfs(directory)
    blocks = status.f_bfree if os.geteuid() == 0 else status.f_bavail
    return blocks * status.f_frsize
