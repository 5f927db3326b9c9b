"""A log of a guest's console, in a file of a limited size."""

from __future__ import annotations

import contextlib
import os

LARGEST_LOG = 16 << 20
"""Bytes after which the log starts again, because a guest may write without end."""


class ConsoleLog:
    """The file of an appending descriptor, which the caller closes.

    Data that the file system refuses is lost, and the guest goes on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    def write(self, data: bytes) -> None:
        """Append data; from any thread."""
        with contextlib.suppress(OSError):
            if self._size + len(data) > LARGEST_LOG:
                os.ftruncate(self._descriptor, 0)
                self._size = 0
            self._size += os.write(self._descriptor, data)
