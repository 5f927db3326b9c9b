"""Limits the size of a log that another program writes.

QEMU has no limit for a chardev's log, and a guest may write without end. QEMU appends to the file,
so that another process may cut it. That process has no need to start another one, which may fail
when the machine has as many processes as it may have.
"""

from __future__ import annotations

import os
import select

_INTERVAL = 5.0
"""Seconds between two looks."""


def limit(log: int, most: int, pipe: int, interval: float = _INTERVAL) -> None:
    """Begin a log again whenever it has more than `most` bytes, until a pipe is closed.

    Both are descriptors; the other ends of the pipe are those of the program that writes.
    """
    while not select.select([pipe], [], [], interval)[0]:
        _cut(log, most)
    _cut(log, most)


def _cut(log: int, most: int) -> None:
    try:
        if os.fstat(log).st_size > most:
            os.ftruncate(log, 0)
    except OSError:
        # A disk in trouble may have less of it later.
        return
