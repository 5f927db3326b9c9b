"""Waking processes that wait for a change of the store: each has a FIFO (fifo(7)) in one directory.

A command that has changed something writes a byte to each of them. The FIFO of a process that was
killed has no reader, and is removed by the next change.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

_DRAINED = 4096
_WITHOUT_FIFO = 0.2
"""Seconds between looks at the store without a FIFO."""


class Changes:
    """A wait for changes of a store. Get one from `Store.changes`."""

    def __init__(self, fifo: int | None) -> None:
        self._fifo = fifo

    def fileno(self) -> int:
        """What becomes readable at a change, for an event loop.

        Raises:
            OSError: the file system is full, and there is none.
        """
        if self._fifo is None:
            raise OSError("making a FIFO failed")
        return self._fifo

    def wait(self, timeout: float | None = None) -> None:
        """Wait until something has changed since the last time, at most `timeout` seconds."""
        if self._fifo is None:
            time.sleep(_WITHOUT_FIFO if timeout is None else min(timeout, _WITHOUT_FIFO))
            return
        poll = select.poll()
        poll.register(self._fifo, select.POLLIN)
        if poll.poll(None if timeout is None else timeout * 1000):
            os.read(self._fifo, _DRAINED)


class Waiters:
    """The processes that wait for changes of one store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def wake(self) -> None:
        """Tell all of them that something has changed."""
        # The change has been made: it must not fail by what keeps others from hearing of it.
        with contextlib.suppress(OSError):
            for fifo in self._directory.glob("[0-9a-f]*"):
                with contextlib.suppress(OSError):
                    _wake(fifo)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[Changes]:
        """Changes in this block are heard of, even before they are waited for."""
        path = self._directory / uuid.uuid4().hex[:12]
        try:
            fifo = _make(path)
        except OSError:
            # Such as on a full file system, where events are followed all the same.
            yield Changes(None)
            return
        try:
            yield Changes(fifo)
        finally:
            path.unlink(missing_ok=True)
            os.close(fifo)


def _make(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unread = path.with_name(f".{path.name}")
    os.mkfifo(unread, 0o600)
    try:
        # Open for both, it has a reader from now on and never ends.
        fifo = os.open(unread, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        unread.rename(path)
    except BaseException:
        unread.unlink(missing_ok=True)
        raise
    return fifo


def _wake(fifo: Path) -> None:
    """Wake one of them.

    Raises:
        OSError: it is no FIFO, or its reader has gone just now.
    """
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ENXIO:
            # It has no reader any more.
            fifo.unlink(missing_ok=True)
        raise
    try:
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.write(descriptor, b"\0")
    finally:
        os.close(descriptor)
