"""The virtio console with many ports (virtio 1.2, section 5.3): consoles, and named byte streams.

A port is told to the driver in three steps on the control queues: it is there, it has a name, the
host's side is open. Bytes that one side does not take wait at the other, in bounds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.device import Notify, VirtioDevice
from cerne.devices.virtio.queue import Chain, Queue, QueueError

_MULTIPORT = 1 << 1
_QUEUE_SIZE = 128
_CONTROL = struct.Struct("<IHH")
_CONFIG = struct.Struct("<HHII")
_CONTROL_RX, _CONTROL_TX = 2, 3
_LONGEST_BACKLOG = 256 * 1024
_LONGEST_MESSAGE = 64
_LARGEST_WRITE = 1 << 20
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
        self.outgoing = b""
        self.host_open = False
        self.guest_open = False
        self.ready = False


class ConsoleDevice(VirtioDevice):
    """The device. What its host side calls takes the device's lock."""

    device_type = 3
    features = _MULTIPORT

    def __init__(self, ports: Sequence[Port]) -> None:
        super().__init__()
        self._ports = list(ports)
        # Receive and transmit of each port, and of the control messages behind the first.
        self.queue_sizes = (_QUEUE_SIZE,) * (2 * len(ports) + 2)
        self._states = [_PortState() for _ in ports]
        self._control: list[bytes] = []

    def config(self) -> bytes:
        """The count of ports; the console's size is not told."""
        return _CONFIG.pack(0, 0, len(self._ports), 0)

    def activate(self, queues: Sequence[Queue], features: int, notify: Notify) -> None:
        """The driver is ready: from now on queues are used."""
        super().activate(queues, features, notify)
        if not features & _MULTIPORT and self._states:
            # A driver of one port never says that it is open.
            self._states[0].guest_open = True

    def reset(self) -> None:
        """Forget the driver; what the host's side said stays."""
        super().reset()
        self._control.clear()
        for state in self._states:
            state.incoming.clear()
            state.outgoing = b""
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
        taken = b""
        with self.working():
            state = self._states[port]
            if state.guest_open and self.active:
                taken = data[: _LONGEST_BACKLOG - len(state.incoming)]
                state.incoming += taken
                self._receive(port)
        return len(taken)

    def resume(self, port: int) -> None:
        """The sink of a port takes bytes again."""
        with self.working():
            if self.active:
                self._transmit(port)

    def set_open(self, port: int, is_open: bool) -> None:
        """Somebody on the host has come to a port, or has left it."""
        with self.working():
            state = self._states[port]
            state.host_open = is_open
            if not is_open:
                state.incoming.clear()
                state.outgoing = b""
            if state.ready:
                self._tell(port, Event.PORT_OPEN, int(is_open))

    def state(self) -> PlainState:
        """What was agreed on each port; bytes on their way belong to connections, and are not."""
        ports = [{"ready": port.ready, "guest_open": port.guest_open} for port in self._states]
        return {"ports": ports, "control": [message.hex() for message in self._control]}

    def restore(self, state: PlainState) -> None:
        """Take that back; raises DamagedError."""
        saved = SavedState("a virtio console", state)
        ports = saved.plain_list("ports", len(self._states))
        for port, values in zip(self._states, ports, strict=True):
            kept = SavedState("a port of a virtio console", values)
            port.ready, port.guest_open = kept.flag("ready"), kept.flag("guest_open")

    def _transmit(self, port: int) -> None:
        """Give the sink what the guest wrote, as far as it takes it."""
        state = self._states[port]
        state.outgoing = state.outgoing[self._ports[port].sink(state.outgoing) :]

        def serve(queue: Queue) -> bool:
            if state.outgoing:
                return False
            chain = queue.pop()
            if chain is None:
                return False
            if chain.readable_size > _LARGEST_WRITE:
                raise QueueError(f"a write of {chain.readable_size} bytes to a console")
            data = b"".join(chain.readable)
            queue.push(chain.head, 0)
            state.outgoing = data[self._ports[port].sink(data) :]
            return True

        if not state.outgoing:
            self._drain(self._queues[_queue_of(port) + 1], serve)

    def _receive(self, port: int) -> None:
        """Give the guest what waits for it, as far as it offers buffers."""
        state = self._states[port]

        def serve(queue: Queue) -> bool:
            chain = queue.pop() if state.incoming else None
            if chain is None:
                return False
            queue.push(chain.head, _fill(chain, state.incoming))
            return True

        self._drain(self._queues[_queue_of(port)], serve)

    def _take_control(self) -> None:
        def serve(queue: Queue) -> bool:
            chain = queue.pop()
            if chain is None:
                return False
            message = b"".join(bytes(view[:_LONGEST_MESSAGE]) for view in chain.readable)
            queue.push(chain.head, 0)
            if len(message) >= _CONTROL.size:
                self._told(*_CONTROL.unpack_from(message))
            return True

        self._drain(self._queues[_CONTROL_TX], serve)

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
        def serve(queue: Queue) -> bool:
            chain = queue.pop() if self._control else None
            if chain is None:
                return False
            queue.push(chain.head, _fill(chain, bytearray(self._control.pop(0))))
            return True

        if self.active:
            self._drain(self._queues[_CONTROL_RX], serve)


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
