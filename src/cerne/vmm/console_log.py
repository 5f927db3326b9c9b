"""What a guest wrote to its console, in a file that does not grow for ever."""

from __future__ import annotations

import contextlib
import os

LARGEST_LOG = 16 << 20
"""Bytes, after which it begins anew: a guest may write as fast as it likes."""


class ConsoleLog:
    """The file behind a descriptor that writes at its end, and stays the caller's.

    What the file system does not take is lost: the guest runs on.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    def write(self, data: bytes) -> None:
        """Write at its end; from whatever thread has something."""
        with contextlib.suppress(OSError):
            if self._size + len(data) > LARGEST_LOG:
                os.ftruncate(self._descriptor, 0)
                self._size = 0
            self._size += os.write(self._descriptor, data)
