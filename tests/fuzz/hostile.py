"""A driver, and a host's side, that do with a virtio device whatever the bytes say."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import INDIRECT, NEXT, WRITE
from tests.devices.registry import GROWING, MAC, VIRTIO
from tests.fuzz.cursor import Cursor

from cerne.devices.virtio.balloon import BalloonDevice
from cerne.devices.virtio.block import BlockDevice
from cerne.devices.virtio.console import ConsoleDevice
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.mem import MemDevice
from cerne.devices.virtio.net.device import NetDevice
from cerne.devices.virtio.net.stream import StreamLink
from cerne.devices.virtio.rng import RngDevice
from cerne.devices.virtio.vsock.connection import Connection
from cerne.devices.virtio.vsock.device import VsockDevice
from cerne.kvm.memory import BLOCK_SIZE, GuestAddress, GuestMemory

MEMORY_SIZE = 1 << 20
DATA = 0x80000
_MOST_STEPS = 64

_REGISTERS = (
    *((0, 4), (8, 4), (12, 4), (16, 2), (20, 1), (22, 2), (24, 2), (26, 2), (28, 2), (32, 8)),
    *((36, 4), (40, 8), (48, 8), (58, 2)),
)
_ADDRESSES = (DATA, DATA + 0x1000, 0x1000, 0x1104, 0x2000, MEMORY_SIZE - 8, MEMORY_SIZE, 0)
_LENGTHS = (0, 1, 8, 12, 16, 44, 64, 513, 4096, 65536, 0xFFFF_FFFF)
_FLAGS = (0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, 0xFFFF)

_memory = GuestMemory.anonymous([(GuestAddress(0), MEMORY_SIZE)])
_near, _far = socket.socketpair()
for _end in (_near, _far):
    _end.setblocking(False)


def _empty(link: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while link.recv(1 << 16):
            pass


class _Programs:
    """The host's side of the socket device: every other port has a program."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []

    def pair(self) -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.ends += (near, far)
        return near

    def connect(self, port: int) -> socket.socket:
        if port % 2:
            raise ConnectionRefusedError
        return self.pair()

    def opened(self, connection: Connection) -> None:
        """Nobody waits for it."""

    def changed(self, connection: Connection) -> None:
        """Everything is tried anyway."""


class Hostile:
    """One device and all that is done to it."""

    def __init__(self, kind: type[VirtioDevice], data: bytes) -> None:
        self._cursor = Cursor(data)
        self._programs = _Programs()
        _memory.view(0, MEMORY_SIZE)[:] = bytes(MEMORY_SIZE)
        self._device = self._make(kind)
        self._guest = Guest(self._device, _memory)
        self._guest.rung()
        self._steps: tuple[Callable[[], None], ...] = (
            self._describe,
            self._offer,
            self._kick,
            self._fill_memory,
            self._host_side,
            self._write_register,
            self._touch_memory_of_device,
            self._touch_configuration,
            self._jump,
            self._start,
            self._save_and_restore,
            self._honest_chain,
        )

    def run(self) -> None:
        """Do what the bytes say, to the end."""
        try:
            if self._cursor.number(1) % 8:
                self._start()
            for _ in range(_MOST_STEPS):
                if not self._cursor.left:
                    break
                self._cursor.choice(self._steps)()
            self._device.config()
            self._guest.transport.reset()
        finally:
            for end in self._programs.ends:
                end.close()

    def _make(self, kind: type[VirtioDevice]) -> VirtioDevice:
        if kind is VsockDevice:
            return VsockDevice(3, self._programs)
        if kind is BalloonDevice:
            return BalloonDevice(_memory)
        if kind is MemDevice:
            for block in GROWING.plugged:
                GROWING.unplug(block)
        if kind is NetDevice:
            for end in (_near, _far):
                _empty(end)
            return NetDevice(MAC, StreamLink(_near))
        return VIRTIO[kind]()

    def _queue(self) -> int:
        return self._cursor.number(1) % len(self._device.queue_sizes)

    def _start(self) -> None:
        self._guest.write(20, 1, 0)
        self._guest.queues.clear()
        self._guest.start(refuse=self._cursor.choice((0, 1 << 28, 1 << 29, 3)))

    def _address(self) -> int:
        chosen = self._cursor.number(1)
        if chosen == 0xFF:
            return self._cursor.number(8)
        return _ADDRESSES[chosen % len(_ADDRESSES)] + (chosen >> 3)

    def _describe(self) -> None:
        queue = self._queue()
        if queue < len(self._guest.queues):
            self._guest.queues[queue].describe(
                self._cursor.number(1) % 16,
                self._address(),
                self._cursor.choice(_LENGTHS),
                self._cursor.choice(_FLAGS),
                self._cursor.number(1) % 18,
            )

    def _honest_chain(self) -> None:
        """A header, bytes to read and bytes to write, as requests of most devices are."""
        queue = self._queue()
        if queue >= len(self._guest.queues):
            return
        driver = self._guest.queues[queue]
        content = self._cursor.take(self._cursor.number(1) % 96)
        _memory.write(DATA, content)
        driver.describe(0, DATA, len(content), NEXT, 1)
        driver.describe(1, DATA + 0x1000, self._cursor.choice(_LENGTHS[:-1]), WRITE, 0)
        driver.offer(0)
        self._served(queue)

    def _offer(self) -> None:
        queue = self._queue()
        if queue < len(self._guest.queues):
            self._guest.queues[queue].offer(self._cursor.number(1) % 18)

    def _jump(self) -> None:
        queue = self._queue()
        if queue < len(self._guest.queues):
            _memory.write_u16(self._guest.queues[queue].available + 2, self._cursor.number(2))

    def _kick(self) -> None:
        self._served(self._queue())

    def _served(self, queue: int) -> None:
        self._guest.kick(queue)
        assert self._guest.rung() <= 1, "a device rings its own doorbell once a turn"

    def _fill_memory(self) -> None:
        at = self._cursor.choice((DATA, DATA + 0x1000, 0x1000, 0x1100))
        _memory.write(at, self._cursor.take(self._cursor.number(1)))

    def _write_register(self) -> None:
        offset, size = self._cursor.choice(_REGISTERS)
        self._guest.write(offset, size, self._cursor.number(size))

    def _touch_memory_of_device(self) -> None:
        offset, size = self._cursor.number(2), self._cursor.choice((1, 2, 3, 4, 5, 8))
        size = min(size, 0x10000 - offset)
        assert 0 <= self._guest.read(offset, size) < 1 << 8 * size
        self._guest.write(offset, size, self._cursor.number(size))
        self._guest.rung()

    def _touch_configuration(self) -> None:
        offset, size = self._cursor.number(1), self._cursor.choice((1, 2, 4))
        self._guest.transport.write_config(offset, size, self._cursor.number(size))
        assert 0 <= self._guest.transport.read_config(offset, size) < 1 << 8 * size
        self._guest.rung()

    def _save_and_restore(self) -> None:
        state = self._guest.transport.state()
        self._guest.transport.restore(state)
        # The socket device forgets its connections, and what waits for them.
        if not isinstance(self._device, VsockDevice):
            assert self._guest.transport.state() == state

    def _host_side(self) -> None:
        device = self._device
        if isinstance(device, ConsoleDevice):
            self._speak_to_ports(device)
        elif isinstance(device, NetDevice):
            self._send_frames(device)
        elif isinstance(device, BalloonDevice):
            device.want(self._cursor.number(4))
            device.ask()
        elif isinstance(device, MemDevice):
            device.request(self._cursor.number(1) % 3 * BLOCK_SIZE)
        elif isinstance(device, VsockDevice):
            self._use_connections(device)
        self._guest.rung()

    def _speak_to_ports(self, device: ConsoleDevice) -> None:
        port = self._cursor.number(1) % len(device.ports)
        data = self._cursor.take(self._cursor.number(1) % 32)
        assert 0 <= device.feed(port, data) <= len(data)
        (device.open if self._cursor.number(1) % 2 else device.close)(port)
        device.resume(port)

    def _send_frames(self, device: NetDevice) -> None:
        with contextlib.suppress(BlockingIOError):
            frame = self._cursor.take(self._cursor.number(1) % 64)
            whole = self._cursor.number(1) % 4
            _far.send(len(frame).to_bytes(4, "big") + frame if whole else frame or b"x")
        _empty(_far)
        device.receive()
        device.flush()
        assert not (device.wants_read and self._guest.rung() > 1)

    def _use_connections(self, device: VsockDevice) -> None:
        if self._cursor.number(1) % 4 == 0:
            with contextlib.suppress(ConnectionRefusedError):
                device.connect(self._programs.pair(), self._cursor.number(1))
        if self._programs.ends:
            end = self._cursor.choice(self._programs.ends)
            with contextlib.suppress(OSError):
                end.send(self._cursor.take(8) or b"x")
                _empty(end)
        for connection in device.connections:
            device.receive(connection)
            device.flush(connection)


FUZZED: tuple[type[VirtioDevice], ...] = (
    RngDevice,
    ConsoleDevice,
    BlockDevice,
    NetDevice,
    BalloonDevice,
    VsockDevice,
    MemDevice,
)
"""The devices that are served here; the others' queues are a backend's."""
