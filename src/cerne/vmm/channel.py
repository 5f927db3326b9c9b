"""A byte stream of a device on a Unix socket: one client at a time, others wait.

The guest's data is dropped while no client is connected (a log may keep it). A client's data is
read as fast as the device takes it, so that a slow guest slows its client and fills no memory.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from cerne.vmm.listener import Listener
from cerne.vmm.loop import Loop

_CHUNK = 64 * 1024
_LONGEST_BACKLOG = 1 << 20


class Channel:
    """One listening socket. `take` gets a client's bytes and returns how many it took."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        take: Callable[[bytes], int],
        on_presence: Callable[[bool], None] = lambda present: None,
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._take = take
        self._on_presence = on_presence
        self._on_room = on_room
        self._client: socket.socket | None = None
        self._incoming = b""
        self._outgoing = bytearray()
        self._listener = Listener(loop, listener, self._accept)

    def send(self, data: bytes) -> int:
        """Send bytes to the client; return how many were taken (all, if there is no client)."""
        if self._client is None:
            return len(data)
        taken = data[: _LONGEST_BACKLOG - len(self._outgoing)]
        self._outgoing += taken
        self._flush()
        return len(taken)

    def close(self) -> None:
        """Close the client and the listening socket; the loop must have ended."""
        if self._client is not None:
            self._client.close()
        self._listener.close()

    def _drained(self) -> None:
        self._flush()
        if self._client is not None and not self._outgoing:
            self._on_room()

    def resume(self) -> None:
        """Go on, because the device takes bytes again."""
        if self._client is not None and self._incoming:
            self._pass_on()
        self._watch()

    def _accept(self, client: socket.socket) -> None:
        self._client = client
        # The next client waits in the kernel's queue until this one has left.
        self._listener.want(False)
        self._on_presence(True)
        self._watch()

    def _receive(self) -> None:
        assert self._client is not None
        try:
            data = self._client.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()
            return
        self._incoming += data
        self._pass_on()
        self._watch()

    def _pass_on(self) -> None:
        self._incoming = self._incoming[self._take(self._incoming) :]

    def _flush(self) -> None:
        assert self._client is not None
        try:
            while self._outgoing:
                del self._outgoing[: self._client.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
            return
        self._watch()

    def _watch(self) -> None:
        if self._client is None:
            return
        readable = None if self._incoming else self._receive
        writable = self._drained if self._outgoing else None
        self._loop.watch(self._client.fileno(), readable, writable)

    def _drop(self) -> None:
        if self._client is None:
            return
        self._loop.watch(self._client.fileno(), None)
        self._client.close()
        self._client = None
        self._incoming = b""
        self._outgoing.clear()
        self._on_presence(False)
        self._listener.want(True)
