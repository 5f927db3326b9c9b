"""A listening socket on the loop, which no failed accept(2) ends, and which never spins."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from cerne.vmm.loop import Loop

_NOTHING_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PATIENCE = 0.5
"""Seconds until it is tried again where there is no descriptor, or no memory, for a connection."""


class Listener:
    """Gives each connection to `take`, not blocking, for as long as it is wanted."""

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
        """Take connections, or leave them in the kernel's queue."""
        self._wanted = wanted
        self._watch()

    def close(self) -> None:
        """Listen no more; the loop must not run any more."""
        self._socket.close()

    def _watch(self) -> None:
        self._loop.watch(self._socket.fileno(), self._accept if self._wanted else None)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError as error:
            # Any other is the connection's own (accept(2)): it has gone again.
            if error.errno in _NOTHING_LEFT:
                # It stays in the queue, and would be told of again and again.
                self._loop.watch(self._socket.fileno(), None)
                self._loop.after(_PATIENCE, self._watch)
            return
        connection.setblocking(False)
        self._take(connection)
