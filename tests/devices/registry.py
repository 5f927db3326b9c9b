"""Every device there is, each made anew, and how its state is changed.

`test_contract.py` fails for whatever under `cerne.devices` has a state and is not here.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tests.devices.vhost_backend import VhostBackend

from cerne.devices.block.raw import RawDisk
from cerne.devices.cpu_hotplug import CpuHotplug
from cerne.devices.i8042 import I8042
from cerne.devices.pci.function import PciFunction, PciIdentity
from cerne.devices.pci.hotplug import PciHotplug
from cerne.devices.pci.msix import MsixTable
from cerne.devices.pci.root import ConfigPorts, PciRoot
from cerne.devices.power import POWER_BUTTON, Power
from cerne.devices.rtc import Rtc
from cerne.devices.serial import Serial
from cerne.devices.state import PlainState
from cerne.devices.vhost_user.device import (
    VhostUserBlock,
    VhostUserDevice,
    VhostUserFs,
    VhostUserNet,
)
from cerne.devices.virtio.balloon import BalloonDevice
from cerne.devices.virtio.block import BlockDevice
from cerne.devices.virtio.console import ConsoleDevice, Port
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.mem import MemDevice
from cerne.devices.virtio.net.device import NetDevice
from cerne.devices.virtio.net.stream import StreamLink
from cerne.devices.virtio.queue import Queue
from cerne.devices.virtio.rng import RngDevice
from cerne.devices.virtio.vsock.connection import Connection
from cerne.devices.virtio.vsock.device import VsockDevice
from cerne.kvm.memory import BLOCK_SIZE, GuestAddress, GuestMemory

# Shared by all of a kind, of which there may be thousands.
_disk = os.memfd_create("disk")
_memory = GuestMemory.anonymous([(GuestAddress(0), 1 << 20)])
GROWING = GuestMemory.anonymous([(GuestAddress(0), 1 << 20)])
GROWING.reserve(GuestAddress(1 << 32), 2 * BLOCK_SIZE)
_cable = socket.socketpair()
for _end in _cable:
    _end.setblocking(False)

MAC = bytes.fromhex("525400123456")


class Stateful(Protocol):
    """What is saved and restored."""

    def state(self) -> PlainState:
        """All that it is."""

    def restore(self, state: PlainState) -> None:
        """Be what that says."""


@dataclass(frozen=True)
class Contract:
    """How a device is made, and how it becomes another than it was."""

    make: Callable[[], Stateful]
    change: Callable[[Stateful], None]


class _NoPrograms:
    def connect(self, port: int) -> socket.socket:
        raise ConnectionRefusedError

    def opened(self, connection: Connection) -> None:
        """Nobody began it."""

    def changed(self, connection: Connection) -> None:
        """There is none."""


def console() -> ConsoleDevice:
    return ConsoleDevice([Port("", True, len), Port("org.cerne.agent.0", False, len)])


def block() -> BlockDevice:
    os.ftruncate(_disk, 0)
    os.ftruncate(_disk, 64 << 10)
    return BlockDevice(RawDisk(_disk), serial="one")


def net() -> NetDevice:
    return NetDevice(MAC, StreamLink(_cable[0]))


# Each has a thread and sockets, and there may be thousands: the last few are kept.
_served: deque[tuple[VhostUserDevice, VhostBackend]] = deque()


def _serve(make: Callable[[socket.socket], VhostUserDevice]) -> VhostUserDevice:
    backend = VhostBackend()
    device = make(backend.link)
    _served.append((device, backend))
    if len(_served) > 8:
        former, its_backend = _served.popleft()
        its_backend.die()
        former.close()
    return device


def vhost_block() -> VhostUserDevice:
    return _serve(lambda link: VhostUserBlock(link, 2))


def vhost_fs() -> VhostUserDevice:
    return _serve(lambda link: VhostUserFs(link, "share0"))


def vhost_net() -> VhostUserDevice:
    return _serve(lambda link: VhostUserNet(link, MAC))


def mem() -> MemDevice:
    return MemDevice(GROWING, GROWING.plug, GROWING.unplug)


VIRTIO: dict[type[VirtioDevice], Callable[[], VirtioDevice]] = {
    RngDevice: RngDevice,
    ConsoleDevice: console,
    BlockDevice: block,
    NetDevice: net,
    BalloonDevice: lambda: BalloonDevice(_memory),
    MemDevice: mem,
    VsockDevice: lambda: VsockDevice(3, _NoPrograms()),
    VhostUserBlock: vhost_block,
    VhostUserFs: vhost_fs,
    VhostUserNet: vhost_net,
}
"""The virtio devices; a driver changes them all alike (`pci_guest.py`)."""


class _Line:
    def set(self, level: bool) -> None:
        """Leads nowhere."""


class _Routes:
    def set_route(self, vector: int, address: int, data: int, masked: bool) -> None:
        """Leads nowhere."""

    def trigger(self, vector: int) -> None:
        """Tells nobody."""

    def eventfd(self, vector: int) -> int:
        raise NotImplementedError


class _Mapper:
    def map(self, function: PciFunction, bar: int, address: int, size: int) -> bool:
        return True

    def unmap(self, function: PciFunction, bar: int) -> None:
        """There is no bus."""


def _change_serial(device: Stateful) -> None:
    assert isinstance(device, Serial)
    device.feed(b"typed")
    for register, value in ((3, 0x83), (0, 7), (1, 1), (3, 3), (1, 0xF), (2, 1), (4, 0x1F)):
        device.write(register, 1, value)
    for _ in range(20):
        device.write(0, 1, 65)


def _change_rtc(device: Stateful) -> None:
    assert isinstance(device, Rtc)
    device.write(0, 1, 0x40)
    device.write(1, 1, 0x77)


def _change_keyboard(device: Stateful) -> None:
    assert isinstance(device, I8042)
    device.write(4, 1, 0xAA)


def _change_power(device: Stateful) -> None:
    assert isinstance(device, Power)
    device.signal(POWER_BUTTON)


def _change_ports(device: Stateful) -> None:
    assert isinstance(device, ConfigPorts)
    device.write(0, 4, 0x80000804)


def _hotplug() -> PciHotplug:
    return PciHotplug(lambda: None, lambda slot: None, lambda slot: None)


def _change_hotplug(device: Stateful) -> None:
    assert isinstance(device, PciHotplug)
    device.plugged(24)
    device.ask_back(25)


def _change_processors(device: Stateful) -> None:
    assert isinstance(device, CpuHotplug)
    device.add(4)
    device.write(4, 4, 3)


def _msix() -> MsixTable:
    function = PciFunction(PciIdentity(1, 2, 3))
    table = MsixTable(3, _Routes())
    table.add_to(function, 0, 0x1000, 0x2000)
    function.write_config(function.read_config(0x34, 1) + 2, 2, 1 << 15)
    table.control_written()
    return table


def _change_msix(device: Stateful) -> None:
    assert isinstance(device, MsixTable)
    device.write_table(16, 8, 0xFEE01000)
    device.write_table(28, 4, 0)
    device.trigger(2)


def _queue() -> Queue:
    return Queue(GuestMemory.anonymous([(GuestAddress(0), 1 << 16)]), 8)


def _change_queue(device: Stateful) -> None:
    assert isinstance(device, Queue)
    device.size = 4
    device.descriptors, device.driver, device.device = 0x1000, 0x2000, 0x3000
    device.msix_vector = 1
    device.ready = True
    device.push(0, 7)


PARTS: dict[type, Contract] = {
    Serial: Contract(lambda: Serial(_Line(), lambda data: None), _change_serial),
    Rtc: Contract(Rtc, _change_rtc),
    I8042: Contract(lambda: I8042(lambda: None), _change_keyboard),
    Power: Contract(lambda: Power(_Line(), lambda: None, lambda: None), _change_power),
    ConfigPorts: Contract(lambda: PciRoot(_Mapper()).ports, _change_ports),
    CpuHotplug: Contract(lambda: CpuHotplug(2), _change_processors),
    PciHotplug: Contract(_hotplug, _change_hotplug),
    MsixTable: Contract(_msix, _change_msix),
    Queue: Contract(_queue, _change_queue),
}
"""Everything else that has a state."""
