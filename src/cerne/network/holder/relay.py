"""Relays: a socket in one network whose connections are carried to a socket in another.

A published port of the host leads to a machine, a port of the gateway to the host's loopback, and
the name server of the namespace to the host's name servers. A relay is made without touching any
other one, so that ports change while connections last.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import NamedTuple

from cerne.spec.ports import Protocols

_CHUNK = 1 << 18
_BACKLOG = 1024
_MOST_FLOWS = 1024
"""Senders of datagrams that a relay remembers."""
_LONGEST_DATAGRAM = 65535
_PAUSE = 0.2
_GONE = (errno.ECONNABORTED, errno.EAGAIN, errno.EINTR)


class Address(NamedTuple):
    """Where a socket is, in numbers."""

    host: str
    port: int

    @property
    def family(self) -> socket.AddressFamily:
        """The family of its sockets."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


_Sender = tuple[str | int, ...]
MakeSocket = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]
"""Makes a socket in a network."""
Target = Callable[[], Address | None]
"""Where connections lead now; None for nowhere."""
Keeps = Callable[[str], bool]
"""Whether a client's address is that of the connection to the target too."""
_IP_TRANSPARENT, _IPV6_TRANSPARENT, _IP_BIND_ADDRESS_NO_PORT = 19, 75, 24
"""From <linux/in.h> and <linux/in6.h>."""


def never(_client: str) -> bool:
    """The target sees the address of this network alone."""
    return False


def bound(make: MakeSocket, protocol: Protocols, address: Address) -> socket.socket:
    """A socket that listens at an address, for a `TcpRelay` or a `UdpRelay`.

    Raises:
        OSError: the address or the port is not free for this user.
    """
    tcp = protocol is Protocols.TCP
    made = make(address.family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
    try:
        if tcp:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.family is socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address.host, address.port))
        if tcp:
            made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def _outward(
    make: MakeSocket, kind: socket.SocketKind, target: Address, client: str, keeps: Keeps
) -> socket.socket:
    """A socket for a connection to a target, with its client's address if that is kept.

    Raises:
        OSError: no descriptor is free.
    """
    made = make(target.family, kind)
    six = target.family is socket.AF_INET6
    if six == (":" in client) and keeps(client):
        # Without the right to do so, the target sees the address of this network.
        with contextlib.suppress(OSError):
            if six:
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            made.bind((client, 0))
    made.setblocking(False)
    return made


class TcpRelay:
    """Carries TCP connections."""

    def __init__(
        self, listener: socket.socket, make: MakeSocket, target: Target, keeps: Keeps = never
    ) -> None:
        self._listener = listener
        self._make = make
        self._target = target
        self._keeps = keeps
        self._connections: set[_Connection] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        """Stop listening, and end the connections."""
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for connection in tuple(self._connections):
            connection.close()

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                accepted, client = self._listener.accept()
            except OSError as error:
                if error.errno not in _GONE:
                    # No descriptor is free: connections wait until there is one.
                    self._loop.remove_reader(self._listener)
                    self._loop.call_later(_PAUSE, self._resume)
                return
            self._connect(accepted, str(client[0]))

    def _resume(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _connect(self, accepted: socket.socket, client: str) -> None:
        target = self._target()
        if target is None:
            accepted.close()
            return
        try:
            made = _outward(self._make, socket.SOCK_STREAM, target, client, self._keeps)
        except OSError:
            accepted.close()
            return
        accepted.setblocking(False)
        for each in (accepted, made):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BlockingIOError):
            try:
                made.connect((target.host, target.port))
            except BlockingIOError:
                raise
            except OSError:
                accepted.close()
                made.close()
                return
        connection = _Connection(self._loop, accepted, made, self._connections.discard)
        self._connections.add(connection)


class _Connection:
    """Two connected sockets, of which each gets what the other says."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        near: socket.socket,
        far: socket.socket,
        ended: Callable[[_Connection], None],
    ) -> None:
        self._loop = loop
        self._sockets = (near, far)
        self._ended = ended
        self._open = 2
        # The second socket is writable when it is connected.
        loop.add_writer(far, self._connected)

    def close(self) -> None:
        """End both."""
        for each in self._sockets:
            if each.fileno() >= 0:
                self._loop.remove_reader(each)
                self._loop.remove_writer(each)
                each.close()
        self._ended(self)

    def _connected(self) -> None:
        near, far = self._sockets
        self._loop.remove_writer(far)
        if far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._reset()
            return
        self._loop.add_reader(near, self._read, near, far)
        self._loop.add_reader(far, self._read, far, near)

    def _read(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._reset()
            return
        if not data:
            self._loop.remove_reader(source)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            self._open -= 1
            if not self._open:
                self.close()
            return
        self._write(source, sink, memoryview(data))

    def _write(self, source: socket.socket, sink: socket.socket, data: memoryview) -> None:
        try:
            sent = sink.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._reset()
            return
        if sent == len(data):
            return
        self._loop.remove_reader(source)
        self._loop.add_writer(sink, self._continue, source, sink, data[sent:])

    def _continue(self, source: socket.socket, sink: socket.socket, data: memoryview) -> None:
        self._loop.remove_writer(sink)
        self._loop.add_reader(source, self._read, source, sink)
        self._write(source, sink, data)

    def _reset(self) -> None:
        """End both as the one that failed: the other's peer sees a reset."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()


class UdpRelay:
    """Carries datagrams; each sender has a socket of its own, until it is idle."""

    def __init__(
        self,
        listener: socket.socket,
        make: MakeSocket,
        target: Target,
        keeps: Keeps = never,
        idle: float = 60.0,
    ) -> None:
        self._listener = listener
        self._make = make
        self._target = target
        self._keeps = keeps
        self._idle = idle
        self._flows: dict[_Sender, _Flow] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._read)
        self._timer = self._loop.call_later(idle, self._expire)

    def close(self) -> None:
        """Stop listening, and forget all senders."""
        self._timer.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for sender in tuple(self._flows):
            self._forget(sender)

    def _read(self) -> None:
        try:
            data, sender = self._listener.recvfrom(_LONGEST_DATAGRAM)
        except OSError:
            return
        flow = self._flows.pop(sender, None) or self._opened(sender)
        if flow is None:
            return
        # The last one is the latest used.
        self._flows[sender] = flow
        flow.used = self._loop.time()
        with contextlib.suppress(OSError):
            flow.socket.send(data)

    def _opened(self, sender: _Sender) -> _Flow | None:
        target = self._target()
        if target is None:
            return None
        if len(self._flows) >= _MOST_FLOWS:
            self._forget(next(iter(self._flows)))
        try:
            made = _outward(self._make, socket.SOCK_DGRAM, target, str(sender[0]), self._keeps)
        except OSError:
            return None
        try:
            made.connect((target.host, target.port))
        except OSError:
            made.close()
            return None
        flow = _Flow(made, self._loop.time())
        self._loop.add_reader(made, self._answer, flow, sender)
        return flow

    def _answer(self, flow: _Flow, sender: _Sender) -> None:
        try:
            data = flow.socket.recv(_LONGEST_DATAGRAM)
        except OSError:
            # The target refuses, for now.
            return
        flow.used = self._loop.time()
        with contextlib.suppress(OSError):
            self._listener.sendto(data, sender)

    def _expire(self) -> None:
        before = self._loop.time() - self._idle
        for sender, flow in tuple(self._flows.items()):
            if flow.used < before:
                self._forget(sender)
        self._timer = self._loop.call_later(self._idle, self._expire)

    def _forget(self, sender: _Sender) -> None:
        flow = self._flows.pop(sender)
        self._loop.remove_reader(flow.socket)
        flow.socket.close()


class _Flow:
    """One sender's socket."""

    def __init__(self, made: socket.socket, used: float) -> None:
        self.socket = made
        self.used = used


Relay = TcpRelay | UdpRelay


def relay(
    listener: socket.socket,
    protocol: Protocols,
    make: MakeSocket,
    target: Target,
    keeps: Keeps = never,
) -> Relay:
    """A relay of this listening socket."""
    if protocol is Protocols.TCP:
        return TcpRelay(listener, make, target, keeps)
    return UdpRelay(listener, make, target, keeps)
