"""The virtio console with many ports (virtio 1.2, section 5.3): consoles, and named byte streams.

A port is told to the driver in three steps on the control queues: it is there, it has a name, the
host's side is open. Bytes that one side does not take wait at the other, in bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cerne.devices.virtio.queue import Chain, Queue

_MULTIPORT = 1 << 1
_QUEUE_SIZE = 128
_CONTROL = struct.Struct("<IHH")
_CONFIG = struct.Struct("<HHII")
_CONTROL_RX, _CONTROL_TX = 2, 3
_LONGEST_BACKLOG = 256 * 1024
_LONGEST_MESSAGE = 64
_MOST_CONTROL = 1024


class Event(IntEnum):
    """What a control message says (VIRTIO_CONSOLE_*)."""

    DEVICE_READY = 0
    PORT_ADD = 1
    PORT_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


@dataclass(frozen=True, slots=True)
class Port:
    """A port as its owner on the host wants it."""

    name: str
    sink: Callable[[bytes], int]
    """Given what the guest writes; says how many bytes it took. `resume` offers it the rest."""
    on_room: Callable[[], None]
    """Called when the guest may take more than it did at the last `feed`."""
    is_console: bool = False


class _PortState:
    """What is known of a port while a driver drives the device."""

    def __init__(self) -> None:
        self.incoming = bytearray()
        self.outgoing: Chain | None = None
        self.sent = 0
        self.host_open = False
        self.guest_open = False
        self.ready = False


class Console:
    """The device; all of its methods belong to one thread."""

    device_type = 3
    features = _MULTIPORT

    def __init__(self, ports: Sequence[Port]) -> None:
        self._ports = list(ports)
        # Receive and transmit of each port, and of the control messages behind the first.
        self.queue_sizes = (_QUEUE_SIZE,) * (2 * len(ports) + 2)
        self._states = [_PortState() for _ in ports]
        self._queues: Sequence[Queue] = ()
        self._multiport = False
        self._control: list[bytes] = []
        self._notify: Callable[[Queue], None] = lambda queue: None

    def read_config(self, offset: int, size: int) -> int:
        """The count of ports; the console's size is not told."""
        config = _CONFIG.pack(0, 0, len(self._ports), 0)
        return int.from_bytes(config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Nothing here can be written."""

    def activate(
        self, queues: Sequence[Queue], features: int, notify: Callable[[Queue], None]
    ) -> None:
        """The driver is ready: from now on queues are used."""
        self._queues = queues
        self._notify = notify
        self._multiport = bool(features & _MULTIPORT)
        if not self._multiport and self._states:
            # A driver of one port never says that it is open.
            self._states[0].guest_open = True

    def reset(self) -> None:
        """Forget the driver; what the host's side said stays."""
        self._queues = ()
        self._control.clear()
        for state in self._states:
            state.incoming.clear()
            state.outgoing, state.sent = None, 0
            state.guest_open = state.ready = False

    def process(self, queue_index: int) -> None:
        """The driver has offered chains on a queue."""
        if queue_index == _CONTROL_TX:
            self._take_control()
        elif queue_index == _CONTROL_RX:
            self._send_control()
        else:
            port = _port_of(queue_index)
            if queue_index % 2:
                self._transmit(port)
            else:
                self._receive(port)
                self._ports[port].on_room()

    def feed(self, port: int, data: bytes) -> int:
        """Take bytes for the guest to read from a port; how many were taken."""
        state = self._states[port]
        if not state.guest_open or not self._queues:
            return 0
        taken = data[: _LONGEST_BACKLOG - len(state.incoming)]
        state.incoming += taken
        self._receive(port)
        return len(taken)

    def resume(self, port: int) -> None:
        """The sink of a port takes bytes again."""
        if self._queues:
            self._transmit(port)

    def set_open(self, port: int, is_open: bool) -> None:
        """Somebody on the host has come to a port, or has left it."""
        state = self._states[port]
        state.host_open = is_open
        if not is_open:
            state.incoming.clear()
        if state.ready:
            self._tell(port, Event.PORT_OPEN, int(is_open))

    def _transmit(self, port: int) -> None:
        """Give the sink what the guest wrote, as far as it takes it."""
        queue, state = self._queues[_queue_of(port) + 1], self._states[port]
        finished = False
        while True:
            if state.outgoing is None:
                state.outgoing, state.sent = queue.pop(), 0
            if state.outgoing is None:
                if queue.enable_notification():
                    continue
                break
            data = b"".join(state.outgoing.readable)
            state.sent += self._ports[port].sink(data[state.sent :])
            if state.sent < len(data):
                break
            queue.push(state.outgoing.head, 0)
            state.outgoing, finished = None, True
        if finished:
            self._notify(queue)

    def _receive(self, port: int) -> None:
        """Give the guest what waits for it, as far as it offers buffers."""
        queue, state = self._queues[_queue_of(port)], self._states[port]
        filled = False
        while state.incoming:
            chain = queue.pop()
            if chain is None:
                if queue.enable_notification():
                    continue
                break
            queue.push(chain.head, _fill(chain, state.incoming))
            filled = True
        if filled:
            self._notify(queue)

    def _take_control(self) -> None:
        queue = self._queues[_CONTROL_TX]
        taken = False
        while (chain := queue.pop()) is not None:
            message = b"".join(bytes(view[:_LONGEST_MESSAGE]) for view in chain.readable)
            queue.push(chain.head, 0)
            taken = True
            if len(message) >= _CONTROL.size:
                self._told(*_CONTROL.unpack_from(message))
        queue.enable_notification()
        if taken:
            self._notify(queue)

    def _told(self, port: int, event: int, value: int) -> None:
        if event == Event.DEVICE_READY and value:
            for index in range(len(self._ports)):
                self._tell(index, Event.PORT_ADD, 1)
            return
        if port >= len(self._ports):
            return
        state = self._states[port]
        if event == Event.PORT_READY and value:
            state.ready = True
            self._introduce(port)
        elif event == Event.PORT_OPEN:
            state.guest_open = bool(value)
            if value:
                self._ports[port].on_room()

    def _introduce(self, port: int) -> None:
        if self._ports[port].is_console:
            self._tell(port, Event.CONSOLE_PORT, 1)
        self._tell(port, Event.PORT_NAME, 1, self._ports[port].name.encode())
        if self._states[port].host_open:
            self._tell(port, Event.PORT_OPEN, 1)

    def _tell(self, port: int, event: Event, value: int, more: bytes = b"") -> None:
        # A driver that asks again and again, and takes no answer, is not listened to.
        if len(self._control) < _MOST_CONTROL:
            self._control.append(_CONTROL.pack(port, event, value) + more)
        self._send_control()

    def _send_control(self) -> None:
        if not self._queues:
            return
        queue = self._queues[_CONTROL_RX]
        sent = False
        while self._control:
            chain = queue.pop()
            if chain is None:
                if queue.enable_notification():
                    continue
                break
            queue.push(chain.head, _fill(chain, bytearray(self._control.pop(0))))
            sent = True
        if sent:
            self._notify(queue)


def _queue_of(port: int) -> int:
    """The receive queue of a port; its transmit queue follows."""
    return 2 * port + 2 if port else 0


def _port_of(queue: int) -> int:
    return queue // 2 - 1 if queue > _CONTROL_TX else 0


def _fill(chain: Chain, data: bytearray) -> int:
    """Move bytes from the front of `data` into a chain; how many."""
    total = 0
    for view in chain.writable:
        part = min(len(view), len(data))
        view[:part] = data[:part]
        del data[:part]
        total += part
    return total
