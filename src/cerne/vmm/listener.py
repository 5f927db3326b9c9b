"""A listening socket on the loop, which survives a failed accept(2) and never spins."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from cerne.vmm.loop import Loop

_NOTHING_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PATIENCE = 0.5
"""Seconds until the next attempt after descriptors or memory ran out."""


class Listener:
    """Passes each connection, non-blocking, to `take` while connections are wanted."""

    def __init__(
        self, loop: Loop, listening: socket.socket, take: Callable[[socket.socket], None]
    ) -> None:
        self._loop = loop
        self._socket = listening
        self._take = take
        self._wanted = True
        listening.setblocking(False)
        self._watch()

    def want(self, wanted: bool) -> None:
        """Accept connections, or leave them in the kernel's queue."""
        self._wanted = wanted
        self._watch()

    def close(self) -> None:
        """Close the socket; the loop must have ended."""
        self._socket.close()

    def _watch(self) -> None:
        self._loop.watch(self._socket.fileno(), self._accept if self._wanted else None)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            # Any other error belongs to the connection (accept(2)), which has gone.
            if error.errno in _NOTHING_LEFT:
                # The connection stays in the queue, and poll would report it again and again.
                self._loop.watch(self._socket.fileno(), None)
                self._loop.after(_PATIENCE, self._watch)
            return
        connection.setblocking(False)
        self._take(connection)
