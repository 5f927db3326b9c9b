"""The console device with several ports (virtio 1.2, section 5.3).

Each port is a stream in both directions; the guest finds a named port by its name, and the guest
agent uses such ports. Two control queues carry messages about ports that are added, opened and
closed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.buffers import gather, scatter, split
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.queue import Chain

_QUEUE_SIZE = 128
_CONTROL_QUEUES = (2, 3)
_FEATURE_MULTIPORT = 1 << 1
_MESSAGE = struct.Struct("<IHH")
_LARGEST_PIECE = 65536

DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(
    8
)


def _nothing() -> None:
    """For a port whose host side needs no notice."""


class Port(NamedTuple):
    """A port's name, and the receiver of the guest's output."""

    name: str
    is_console: bool
    sink: Callable[[bytes], int]
    """Takes bytes and returns how many; after fewer than all, `resume` continues with the rest."""
    on_room: Callable[[], None] = _nothing
    """Called when the guest has opened or closed the port, or has room; must not wait."""


class _Side:
    """The state of one port."""

    __slots__ = ("guest_open", "host_open", "sent")

    def __init__(self, *, host_open: bool) -> None:
        self.host_open = host_open
        self.guest_open = False
        self.sent = 0


class ConsoleDevice(VirtioDevice):
    """Ports of one guest. Other threads may call `feed`, `resume`, `open` and `close`."""

    device_type = 3
    features = _FEATURE_MULTIPORT
    class_code = 0x078000

    def __init__(self, ports: Sequence[Port]) -> None:
        super().__init__()
        self.ports = tuple(ports)
        self.queue_sizes = (_QUEUE_SIZE,) * (2 * len(self.ports) + 2)
        self._sides = [_Side(host_open=port.is_console) for port in self.ports]
        # Only the last value for each port and event, so that a guest that never reads uses no
        # more.
        self._outgoing: dict[tuple[int, int], int] = {}

    def config(self) -> bytes:
        """The size of the terminal, which is 0, and the number of ports."""
        return struct.pack("<HHII", 0, 0, len(self.ports), 0)

    def guest_open(self, port: int) -> bool:
        """Whether a process in the guest has the port open."""
        return self._sides[port].guest_open

    def open(self, port: int) -> None:
        """Tell the guest that the host has opened the port."""
        self._set_host_open(port, True)

    def close(self, port: int) -> None:
        """Tell the guest that the host has closed the port."""
        self._set_host_open(port, False)

    def feed(self, port: int, data: bytes) -> int:
        """Send bytes to the guest; return how many it took. For the rest, wait for `on_room`."""
        done = 0
        with self.working():
            if not self.active or not self._takes_input(port):
                return 0
            queue = self._queues[_receive_queue(port)]
            if not queue.ready:
                return 0
            while done < len(data) and (chain := queue.pop()) is not None:
                written = scatter(chain.writable, data[done : done + _LARGEST_PIECE])
                done += written
                queue.push(chain.head, written)
            if done < len(data):
                queue.enable_notification()
            self._notify_driver(queue)
        return done

    def resume(self, port: int) -> None:
        """Continue with the bytes that the sink did not take."""
        with self.working():
            if self.active and self._queues[_receive_queue(port) + 1].ready:
                self.process(_receive_queue(port) + 1)

    def process(self, queue_index: int) -> None:
        """Read the guest's output and control messages; send ours."""
        control_in, control_out = _CONTROL_QUEUES
        if queue_index == control_out:
            self._drain(self._queues[queue_index], self._take_message)
            self._send_messages()
        elif queue_index == control_in:
            self._send_messages()
        elif queue_index % 2:
            port = _port_of(queue_index)
            self._drain(self._queues[queue_index], lambda chain: self._take_output(port, chain))
        else:
            self.ports[_port_of(queue_index)].on_room()

    def reset(self) -> None:
        """Mark all ports as closed by the guest."""
        super().reset()
        self._outgoing.clear()
        for side, port in zip(self._sides, self.ports, strict=True):
            side.guest_open = False
            side.sent = 0
            port.on_room()

    def state(self) -> PlainState:
        """The open sides, the unsent messages and the state of each port."""
        return {
            "ports": [
                {"host_open": side.host_open, "guest_open": side.guest_open, "sent": side.sent}
                for side in self._sides
            ],
            "outgoing": [
                {"port": port, "event": event, "value": value}
                for (port, event), value in self._outgoing.items()
            ],
        }

    def restore(self, state: PlainState) -> None:
        """Restore it; raises DamagedError if it is not valid."""
        saved = SavedState("a console", state)
        for side, values in zip(self._sides, saved.sections("ports", len(self.ports)), strict=True):
            side.host_open = values.flag("host_open")
            side.guest_open = values.flag("guest_open")
            side.sent = values.integer("sent", 1 << 32)
        self._outgoing = {
            (
                values.integer("port", len(self.ports) - 1),
                values.integer("event", PORT_NAME),
            ): values.integer("value", 1)
            for values in saved.sections("outgoing", None)
        }

    def _set_host_open(self, port: int, is_open: bool) -> None:
        with self.working():
            side = self._sides[port]
            if side.host_open == is_open:
                return
            side.host_open = is_open
            if self.active:
                self._tell(port, PORT_OPEN, int(is_open))
                self._send_messages()

    def _takes_input(self, port: int) -> bool:
        if not self._features & _FEATURE_MULTIPORT:
            return port == 0
        return self._sides[port].guest_open

    def _take_output(self, port: int, chain: Chain) -> int | None:
        side = self._sides[port]
        _, rest = split(chain.readable, side.sent)
        while rest:
            piece, _ = split(rest, _LARGEST_PIECE)
            data = gather(piece)
            taken = self.ports[port].sink(data)
            side.sent += taken
            if taken < len(data):
                return None
            _, rest = split(rest, taken)
        side.sent = 0
        return 0

    def _take_message(self, chain: Chain) -> int:
        data = gather(split(chain.readable, _MESSAGE.size)[0])
        if len(data) == _MESSAGE.size:
            self._obey(*_MESSAGE.unpack(data))
        return 0

    def _obey(self, port: int, event: int, value: int) -> None:
        if event == DEVICE_READY and value:
            for each in range(len(self.ports)):
                self._tell(each, PORT_ADD, 1)
        elif port >= len(self.ports):
            return
        elif event == PORT_READY and value:
            self._introduce(port)
        elif event == PORT_OPEN:
            self._sides[port].guest_open = bool(value)
            self.ports[port].on_room()

    def _introduce(self, port: int) -> None:
        if self.ports[port].is_console:
            self._tell(port, CONSOLE_PORT, 1)
        if self.ports[port].name:
            self._tell(port, PORT_NAME, 1)
        if self._sides[port].host_open:
            self._tell(port, PORT_OPEN, 1)

    def _tell(self, port: int, event: int, value: int) -> None:
        self._outgoing.pop((port, event), None)
        self._outgoing[port, event] = value

    def _send_messages(self) -> None:
        queue = self._queues[_CONTROL_QUEUES[0]]
        while self._outgoing:
            chain = queue.pop()
            if chain is None:
                if queue.ready and queue.enable_notification():
                    continue
                break
            (port, event), value = next(iter(self._outgoing.items()))
            del self._outgoing[port, event]
            message = _MESSAGE.pack(port, event, value)
            if event == PORT_NAME:
                message += self.ports[port].name.encode()
            queue.push(chain.head, scatter(chain.writable, message))
        if queue.ready:
            self._notify_driver(queue)


def _receive_queue(port: int) -> int:
    return 0 if port == 0 else 2 * port + 2


def _port_of(queue_index: int) -> int:
    return 0 if queue_index < 2 else queue_index // 2 - 1
