"""The words of a process's command line, which a forked child has to change."""

from __future__ import annotations

import ctypes
import os

# Fields of proc(5)'s stat, counted from the one after the command's name.
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46


class Title:
    """The process's command line.

    Made before the walls are up, because the kernel tells its address only to the privileged.
    """

    def __init__(self) -> None:
        with os.fdopen(os.open("/proc/self/stat", os.O_RDONLY), "rb") as status:
            fields = status.read().rpartition(b")")[2].split()
        self._start = int(fields[_ARGUMENTS_START])
        self._size = int(fields[_ARGUMENTS_END]) - self._start

    def set(self, text: str) -> None:
        """Show this text, cut to the available room."""
        title = os.fsencode(text)[: self._size - 1]
        ctypes.memmove(self._start, title.ljust(self._size, b"\0"), self._size)
