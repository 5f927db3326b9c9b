"""The socket device (virtio 1.2, section 5.10): streams between a guest and sockets of the host.

The host's side provides a socket for each connection of the guest to its host (CID 2), and may
begin connections too. No connection survives a snapshot or a fork: a TRANSPORT_RESET tells the new
guest so.
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
"""The most connections between a guest and its host."""

_RECEIVE, _TRANSMIT, _EVENT = 0, 1, 2
_FEATURE_STREAM = 1 << 0
_FIRST_GUEST_CID = 3
_LARGEST_CID = (1 << 32) - 2
_TRANSPORT_RESET = struct.pack("<I", 0)
_FIRST_HOST_PORT, _HOST_PORTS = 1 << 30, 1 << 30
_LARGEST_PIECE = 65536
_MOST_ANSWERS = 1024
"""The most answers that wait for the guest's buffers; beyond that its packets wait too."""
_PACKETS_AT_ONCE = 16

_Serve = Callable[[Connection, Header, Views], bool]


class HostSide(Protocol):
    """The host's side, called with the device's lock held, on any thread; never waits."""

    def connect(self, port: int) -> socket.socket:
        """Connect to the server of a port of the host; returns a non-blocking stream socket.

        Raises:
            OSError: the port has no server.
        """

    def opened(self, connection: Connection) -> None:
        """Called when the guest accepts a connection of the host, before its first data."""

    def changed(self, connection: Connection) -> None:
        """Called at a change of `Connection.wanted`, and at the end, to close the socket."""


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
        # The guest has closed these, and the host's programs have not read all of their data.
        self._lingering: set[Connection] = set()
        # The flags by connection and operation, so that no connection has many.
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
        """All connections, also those that the guest has closed."""
        return (*self._connections.values(), *self._lingering)

    def config(self) -> bytes:
        """The guest's CID."""
        return self._guest_cid.to_bytes(8, "little")

    def connect(self, link: socket.socket, port: int) -> Connection:
        """Request a connection to a port of the guest.

        The socket is connected and non-blocking. The host's side gets the result.

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
        """Give the guest the data of the host's socket."""
        with self.working():
            for _ in range(_PACKETS_AT_ONCE):
                if not self._hears(connection) or not self._pass_on(connection):
                    break
            self._settle()

    def flush(self, connection: Connection) -> None:
        """Write waiting data to the host's socket."""
        with self.working():
            if not connection.ended:
                connection.flush()
                self._look_after(connection)
            self._settle()

    def process(self, queue_index: int) -> None:
        """Handle the guest's packets, and fill its buffers."""
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
        """Called when the driver is gone: end all connections."""
        super().reset()
        for connection in self.connections:
            self._end(connection)
        self._answers.clear()
        self._starved = self._stalled = self._lost = self._event_due = False

    def state(self) -> PlainState:
        """The state, which is empty: connections stay with the process that has their sockets."""
        return {}

    def restore(self, state: PlainState) -> None:
        """Tell the guest as soon as possible that it has no connections."""
        self._lost = self._event_due = self.active

    def _hears(self, connection: Connection) -> bool:
        return not self._starved and connection.host_is_heard and connection.credit > 0

    def _pass_on(self, connection: Connection) -> bool:
        """Fill one buffer of the guest; return whether there was a buffer, and data for it."""
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
        """Handle the guest's packets, while there is room for answers."""
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
        """Handle a packet of a connection; return False if it is not allowed."""
        serve = self._serve.get(header.operation)
        if serve is None or size_of(data) != header.length:
            return False
        # Only the first packet of a connection that the host began is the answer.
        if connection.answered == (header.operation == Operation.RESPONSE):
            return False
        connection.note_credit(header)
        return serve(connection, header, data)

    def _admit(self, key: Key, header: Header) -> bool:
        """Connect the guest to a port of the host; return False if the port has no server."""
        if key.kind != STREAM or self._full():
            return False
        try:
            link = self._host_side.connect(key.host_port)
        except OSError:
            return False
        # The guest starts a new connection: answers for a former one are obsolete.
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
        """Send the guest the news of a connection; end it if both sides have closed it."""
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
        """The guest's next buffer with room for a packet, if there is one now."""
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
        raise QueueError("no buffer in the whole queue has room for a packet")

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
        """Drop the packets that the guest sent before its connections ended."""
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
        """After each operation: send the pending answers, and update the watches."""
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
