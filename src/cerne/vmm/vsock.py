"""The host's side of a machine's sockets: Unix sockets in one directory, as in Firecracker.

A program connects to the listening socket there and writes ``CONNECT port`` and a line feed. It
then reads a line with ``OK`` and the host's port, and is connected to the guest's port. A guest
that connects to a port of its host reaches the socket in the directory whose name is the port's
number, if a program listens there.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from functools import partial

from cerne.devices.virtio.vsock.connection import Connection
from cerne.devices.virtio.vsock.device import VsockDevice
from cerne.vmm.config import VsockConfig
from cerne.vmm.listener import Listener
from cerne.vmm.loop import Loop
from cerne.vmm.reach import connect

GUEST_CID = 3
"""The CID of every guest; only the guest itself uses it."""

_LONGEST_LINE = 32
_MOST_CALLERS = 64
_LINE = re.compile(rb"CONNECT ([0-9]{1,10})\n")
_LARGEST_PORT = (1 << 32) - 2


class HostSockets:
    """One machine's sockets, and the device that they belong to."""

    def __init__(self, loop: Loop, config: VsockConfig) -> None:
        self._loop = loop
        self._directory = config.directory
        self._callers: dict[socket.socket, bytes] = {}
        self._changed: set[Connection] = set()
        self.device = VsockDevice(GUEST_CID, self)
        self._listener = Listener(loop, socket.socket(fileno=config.listener), self._accept)

    def connect(self, port: int) -> socket.socket:
        """Connect to the program that serves this port (see `HostSide.connect`)."""
        return connect(self._directory, str(port))

    def opened(self, connection: Connection) -> None:
        """Tell a client that it is connected."""
        # If the client closes meanwhile, the next read notices that.
        with contextlib.suppress(OSError):
            connection.link.send(b"OK %d\n" % connection.key.host_port)

    def changed(self, connection: Connection) -> None:
        """Update the watch of its socket, or close it, soon, on the loop's thread."""
        if not self._changed:
            self._loop.ask(self._update)
        self._changed.add(connection)

    def close(self) -> None:
        """Close all sockets; the loop must have ended."""
        for link in (*self._callers, *(each.link for each in self.device.connections)):
            link.close()
        for connection in self._changed:
            connection.link.close()
        self._listener.close()
        os.close(self._directory)

    def _update(self) -> None:
        with self.device.lock:
            changed, self._changed = self._changed, set()
            for connection in changed:
                self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        readable, writable = (False, False) if connection.ended else connection.wanted
        self._loop.watch(
            connection.link.fileno(),
            partial(self.device.receive, connection) if readable else None,
            partial(self.device.flush, connection) if writable else None,
        )
        if connection.ended:
            connection.link.close()

    def _watch_listener(self) -> None:
        self._listener.want(len(self._callers) < _MOST_CALLERS)

    def _accept(self, caller: socket.socket) -> None:
        self._callers[caller] = b""
        self._loop.watch(caller.fileno(), partial(self._listen_to, caller))
        self._watch_listener()

    def _listen_to(self, caller: socket.socket) -> None:
        """Read a client's first line; the rest belongs to the guest."""
        line = self._callers[caller]
        try:
            ahead = caller.recv(_LONGEST_LINE - len(line), socket.MSG_PEEK)
            line += caller.recv(ahead.find(b"\n") + 1 or len(ahead))
        except BlockingIOError:
            return
        except OSError:
            ahead = b""
        self._callers[caller] = line
        if not ahead or line.endswith(b"\n") or len(line) >= _LONGEST_LINE:
            self._put_through(caller, line)

    def _put_through(self, caller: socket.socket, line: bytes) -> None:
        del self._callers[caller]
        self._loop.watch(caller.fileno(), None)
        self._watch_listener()
        said = _LINE.fullmatch(line)
        port = -1 if said is None else int(said[1])
        if not 0 <= port <= _LARGEST_PORT:
            caller.close()
            return
        try:
            self.device.connect(caller, port)
        except ConnectionRefusedError:
            caller.close()
