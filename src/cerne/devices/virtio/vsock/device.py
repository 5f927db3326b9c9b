"""The socket device (virtio 1.2, section 5.10): streams between a guest and sockets of the host.

The guest's connections to its host (CID 2) lead to sockets that the host's side hands in, and that
side may begin connections too. No connection outlives a snapshot or a fork: the guest that goes on
is told so by a TRANSPORT_RESET.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Protocol

from cerne.devices.state import PlainState
from cerne.devices.virtio.buffers import Views, gather, scatter, size_of, split
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.queue import Chain, QueueError
from cerne.devices.virtio.vsock.connection import BUFFER, Connection, Key
from cerne.devices.virtio.vsock.packet import (
    HEADER_SIZE,
    HOST_CID,
    STREAM,
    Header,
    Operation,
    Shutdown,
)
from cerne.errors import InputError

MOST_CONNECTIONS = 256
"""How many a guest and its host can have at once."""

_RECEIVE, _TRANSMIT, _EVENT = 0, 1, 2
_FEATURE_STREAM = 1 << 0
_FIRST_GUEST_CID = 3
_LARGEST_CID = (1 << 32) - 2
_TRANSPORT_RESET = struct.pack("<I", 0)
_FIRST_HOST_PORT, _HOST_PORTS = 1 << 30, 1 << 30
_LARGEST_PIECE = 65536
_MOST_ANSWERS = 1024
"""Answers that wait for the guest's buffers; while there are more its packets wait too."""
_PACKETS_AT_ONCE = 16

_Serve = Callable[[Connection, Header, Views], bool]


class HostSide(Protocol):
    """The host's side of a device, called with the device's lock by any thread: it never waits."""

    def connect(self, port: int) -> socket.socket:
        """A connected, non-blocking stream socket to whoever serves this port of the host.

        Raises:
            OSError: nobody does.
        """

    def opened(self, connection: Connection) -> None:
        """The guest took a connection that the host began; nothing of it has come yet."""

    def changed(self, connection: Connection) -> None:
        """`Connection.wanted` has changed, or it has `ended`, and its socket is to be closed."""


class VsockDevice(VirtioDevice):
    """The guest's sockets. Call `receive` and `flush` as `Connection.wanted` says."""

    device_type = 19
    class_code = 0x078000
    features = _FEATURE_STREAM
    queue_sizes = (64, 64, 16)

    def __init__(self, guest_cid: int, host: HostSide) -> None:
        super().__init__()
        if not _FIRST_GUEST_CID <= guest_cid <= _LARGEST_CID:
            raise InputError(f"{guest_cid} is not a guest's CID")
        self._guest_cid = guest_cid
        self._host_side = host
        self._connections: dict[Key, Connection] = {}
        # The guest knows these no more, and the host's programs have not taken all of them.
        self._lingering: set[Connection] = set()
        # By connection and operation, so that no connection has many: the flags.
        self._answers: dict[tuple[Key, Operation], Shutdown] = {}
        self._next_host_port = 0
        self._starved = False
        self._stalled = False
        self._unannounced = False
        self._lost = False
        self._event_due = False
        self._serve: dict[int, _Serve] = {
            Operation.RESPONSE: self._take_response,
            Operation.SHUTDOWN: self._take_shutdown,
            Operation.DATA: self._take_data,
            Operation.CREDIT_UPDATE: self._take_credit,
            Operation.CREDIT_REQUEST: self._take_credit_request,
        }

    @property
    def connections(self) -> tuple[Connection, ...]:
        """All of them, also those that the guest knows no more."""
        return (*self._connections.values(), *self._lingering)

    def config(self) -> bytes:
        """The guest's CID."""
        return self._guest_cid.to_bytes(8, "little")

    def connect(self, link: socket.socket, port: int) -> Connection:
        """Ask the guest for a connection to a port of its own.

        The socket is connected and non-blocking. What comes of it the host's side is told.

        Raises:
            ConnectionRefusedError: the guest has no driver, or there are too many connections.
        """
        with self.working():
            if not self.active or self._full():
                raise ConnectionRefusedError
            connection = Connection(self._free_key(port), link, answered=False)
            self._connections[connection.key] = connection
            self._answer(connection.key, Operation.REQUEST)
            self._settle()
        return connection

    def receive(self, connection: Connection) -> None:
        """Give the guest what the host's socket has."""
        with self.working():
            for _ in range(_PACKETS_AT_ONCE):
                if not self._hears(connection) or not self._pass_on(connection):
                    break
            self._settle()

    def flush(self, connection: Connection) -> None:
        """Give the host's socket what waits for it."""
        with self.working():
            if not connection.ended:
                connection.flush()
                self._look_after(connection)
            self._settle()

    def process(self, queue_index: int) -> None:
        """Take what the guest sends, and use the buffers that it has given."""
        if self._lost:
            self._drop_packets()
        if queue_index == _RECEIVE:
            self._starved = False
        if self._event_due:
            self._send_event()
        if queue_index == _TRANSMIT or self._stalled:
            self._take_packets()
        self._settle()

    def reset(self) -> None:
        """No connection outlives its driver."""
        super().reset()
        for connection in self.connections:
            self._end(connection)
        self._answers.clear()
        self._starved = self._stalled = self._lost = self._event_due = False

    def state(self) -> PlainState:
        """Nothing: connections stay with the process that has their sockets."""
        return {}

    def restore(self, state: PlainState) -> None:
        """Tell the guest, once it can be told, that it has no connection any more."""
        self._lost = self._event_due = self.active

    def _hears(self, connection: Connection) -> bool:
        return not self._starved and connection.host_is_heard and connection.credit > 0

    def _pass_on(self, connection: Connection) -> bool:
        """Fill one buffer of the guest's; whether there was one, and anything to put into it."""
        self._send_answers()
        chain = self._next_buffer()
        if chain is None:
            return False
        queue = self._queues[_RECEIVE]
        head, room = split(chain.writable, HEADER_SIZE)
        try:
            size = connection.fill(split(room, min(connection.credit, _LARGEST_PIECE))[0])
        except BlockingIOError:
            queue.put_back()
            return False
        except OSError:
            queue.put_back()
            self._break_off(connection)
            return False
        if size == 0:
            queue.put_back()
            connection.shut_by_host()
            self._look_after(connection)
            return False
        scatter(head, self._header(connection.key, Operation.DATA, size).pack())
        queue.push(chain.head, HEADER_SIZE + size)
        self._unannounced = True
        if not connection.credit and not connection.credit_asked:
            connection.credit_asked = True
            self._answer(connection.key, Operation.CREDIT_REQUEST)
        return True

    def _take_packets(self) -> None:
        """Take the guest's packets, for as long as there is room for the answers."""
        queue = self._queues[_TRANSMIT]
        if not queue.ready:
            return
        self._stalled = False
        self._drain(queue, self._take)
        self._send_answers()
        if self._stalled and not self._answers and self._host is not None:
            self._host.come_back(queue)

    def _take(self, chain: Chain) -> int | None:
        if len(self._answers) >= _MOST_ANSWERS:
            self._stalled = True
            return None
        head, data = split(chain.readable, HEADER_SIZE)
        header = Header.read(gather(head))
        if header is not None and self._is_between_us(header):
            self._obey(header, split(data, header.length)[0])
        return 0

    def _is_between_us(self, header: Header) -> bool:
        return header.source_cid == self._guest_cid and header.target_cid == HOST_CID

    def _obey(self, header: Header, data: Views) -> None:
        key = Key(header.target_port, header.source_port, header.kind)
        connection = self._connections.get(key)
        if header.operation == Operation.RESET:
            if connection is not None:
                self._take_reset(connection)
        elif connection is None:
            if header.operation != Operation.REQUEST or not self._admit(key, header):
                self._answer(key, Operation.RESET)
        elif not self._obey_in(connection, header, data):
            self._break_off(connection)
        elif not connection.ended:
            self._look_after(connection)

    def _obey_in(self, connection: Connection, header: Header, data: Views) -> bool:
        """Do what a packet of a connection says; False where it may not say that."""
        serve = self._serve.get(header.operation)
        if serve is None or size_of(data) != header.length:
            return False
        # The first packet of a connection that the host began is the answer, and no other is.
        if connection.answered == (header.operation == Operation.RESPONSE):
            return False
        connection.note_credit(header)
        return serve(connection, header, data)

    def _admit(self, key: Key, header: Header) -> bool:
        """Connect the guest to a port of the host; whether somebody is there."""
        if key.kind != STREAM or self._full():
            return False
        try:
            link = self._host_side.connect(key.host_port)
        except OSError:
            return False
        # The guest has begun anew: what it was to be told of a former connection is no more so.
        self._forget_answers(key)
        connection = Connection(key, link, answered=True)
        connection.note_credit(header)
        self._connections[key] = connection
        self._answer(key, Operation.RESPONSE)
        return True

    def _take_response(self, connection: Connection, header: Header, data: Views) -> bool:
        connection.answered = True
        self._host_side.opened(connection)
        return True

    def _take_reset(self, connection: Connection) -> None:
        if connection.guest_finished and not connection.drained:
            connection.reset_by_guest()
            self._forget(connection)
            self._lingering.add(connection)
        else:
            self._end(connection)

    def _take_shutdown(self, connection: Connection, header: Header, data: Views) -> bool:
        connection.shut_by_guest(header.flags)
        return True

    def _take_data(self, connection: Connection, header: Header, data: Views) -> bool:
        return connection.take(data)

    def _take_credit(self, connection: Connection, header: Header, data: Views) -> bool:
        return True

    def _take_credit_request(self, connection: Connection, header: Header, data: Views) -> bool:
        self._answer(connection.key, Operation.CREDIT_UPDATE)
        return True

    def _look_after(self, connection: Connection) -> None:
        """Tell the guest what has come to be of a connection; end it where both have left it."""
        if connection.guest_left and connection.drained:
            told = self._connections.get(connection.key) is connection
            self._end(connection)
            if told:
                self._answer(connection.key, Operation.RESET)
            return
        shut = connection.untold_shutdown()
        if shut:
            self._answer(connection.key, Operation.SHUTDOWN, shut)
        if connection.announcement_is_due:
            self._answer(connection.key, Operation.CREDIT_UPDATE)

    def _break_off(self, connection: Connection) -> None:
        self._end(connection)
        self._answer(connection.key, Operation.RESET)

    def _end(self, connection: Connection) -> None:
        self._forget(connection)
        self._lingering.discard(connection)
        connection.ended = True
        self._host_side.changed(connection)

    def _forget(self, connection: Connection) -> None:
        if self._connections.get(connection.key) is connection:
            del self._connections[connection.key]
            self._forget_answers(connection.key)

    def _forget_answers(self, key: Key) -> None:
        for operation in Operation:
            self._answers.pop((key, operation), None)

    def _answer(self, key: Key, operation: Operation, flags: Shutdown = Shutdown.NONE) -> None:
        self._answers[key, operation] = flags

    def _send_answers(self) -> None:
        while self._answers and (chain := self._next_buffer()) is not None:
            key, operation = next(iter(self._answers))
            flags = self._answers.pop((key, operation))
            packet = self._header(key, operation, flags=flags).pack()
            self._queues[_RECEIVE].push(chain.head, scatter(chain.writable, packet))
            self._unannounced = True

    def _next_buffer(self) -> Chain | None:
        """The next buffer of the guest's that a packet fits into, if there is one now."""
        queue = self._queues[_RECEIVE]
        self._starved = True
        if not queue.ready:
            return None
        for _ in range(queue.size + 1):
            chain = queue.pop()
            if chain is None:
                if not queue.enable_notification():
                    return None
            elif chain.writable_size > HEADER_SIZE:
                self._starved = False
                return chain
            else:
                queue.push(chain.head, 0)
                self._unannounced = True
        raise QueueError("no buffer of a whole queue has room for a packet")

    def _header(
        self, key: Key, operation: Operation, length: int = 0, flags: Shutdown = Shutdown.NONE
    ) -> Header:
        connection = self._connections.get(key)
        return Header(
            source_cid=HOST_CID,
            target_cid=self._guest_cid,
            source_port=key.host_port,
            target_port=key.guest_port,
            length=length,
            kind=key.kind,
            operation=operation,
            flags=flags,
            buffer=0 if connection is None else BUFFER,
            forwarded=0 if connection is None else connection.announce(),
        )

    def _drop_packets(self) -> None:
        """Leave out what the guest sent before it goes on without its connections."""
        self._lost = False
        queue = self._queues[_TRANSMIT]
        if queue.ready:
            self._drain(queue, lambda chain: 0)

    def _send_event(self) -> None:
        queue = self._queues[_EVENT]
        chain = queue.pop() if queue.ready else None
        if chain is not None:
            self._event_due = False
            queue.push(chain.head, scatter(chain.writable, _TRANSPORT_RESET))
            self._notify_driver(queue)

    def _settle(self) -> None:
        """After whatever was done: send what is to be said, and have what can go on watched."""
        if not self.active:
            return
        self._send_answers()
        if self._unannounced:
            self._unannounced = False
            self._notify_driver(self._queues[_RECEIVE])
        for connection in self.connections:
            wanted = (self._hears(connection), not connection.drained)
            if wanted != connection.wanted:
                connection.wanted = wanted
                self._host_side.changed(connection)

    def _full(self) -> bool:
        return len(self._connections) + len(self._lingering) >= MOST_CONNECTIONS

    def _free_key(self, port: int) -> Key:
        while True:
            host_port = _FIRST_HOST_PORT + self._next_host_port
            self._next_host_port = (self._next_host_port + 1) % _HOST_PORTS
            key = Key(host_port, port, STREAM)
            if key not in self._connections:
                return key
