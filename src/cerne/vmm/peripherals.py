"""What is plugged into a machine's board over PCI, and the host's side of each device."""

from __future__ import annotations

import socket
from functools import partial

from cerne.devices.block.chain import open_chain
from cerne.devices.block.disk import Disk
from cerne.devices.state import PlainState
from cerne.devices.virtio.block import BlockDevice
from cerne.devices.virtio.console import ConsoleDevice, Port
from cerne.devices.virtio.rng import RngDevice
from cerne.errors import DamagedError
from cerne.vmm.board import Board
from cerne.vmm.cable import Cable
from cerne.vmm.channel import Channel
from cerne.vmm.config import DiskConfig, NicConfig, VmmConfig
from cerne.vmm.loop import Loop
from cerne.vmm.pci_host import PciHost

_AGENT_PORT = "org.cerne.agent"


class Peripherals:
    """A machine's devices beside those of its board, as its configuration names them."""

    def __init__(self, board: Board, loop: Loop, config: VmmConfig) -> None:
        self._loop = loop
        self._channels: list[Channel] = []
        self._pci = PciHost(board, loop)
        self._agent = self._plug_agent(config.agents)
        self._pci.add(RngDevice())
        self._disks = [self._plug_disk(disk) for disk in config.disks]
        self._cables = [self._plug_nic(nic) for nic in config.nics]

    def state(self) -> PlainState:
        """Every device; no vCPU may be running."""
        return self._pci.state()

    def restore(self, state: PlainState) -> None:
        """Be what `state` says, with the same devices plugged in.

        Raises:
            DamagedError: that cannot be.
        """
        self._pci.restore(state)

    def rouse(self) -> None:
        """Serve every queue, and interrupt for every queue: after the board was restored too."""
        # Whoever was connected is so no more, and what was on its way may be lost.
        for port in range(len(self._agent.ports)):
            self._agent.close(port)
        self._pci.rouse()

    def switch_disks(self, disks: tuple[DiskConfig, ...]) -> list[Disk]:
        """Go on with other files of the same content, while it is paused; those that it had.

        Raises:
            DamagedError: they are not as many as it has.
            CerneError: one cannot be used.
        """
        if len(disks) != len(self._disks):
            raise DamagedError(f"{len(disks)} disks do not replace {len(self._disks)}")
        fresh = [_open_disk(disk) for disk in disks]
        return [device.replace(disk) for device, disk in zip(self._disks, fresh, strict=True)]

    def finish(self) -> None:
        """End the use of the disks in order; no vCPU runs any more."""
        for disk in self._disks:
            disk.close()

    def abandon(self) -> None:
        """Close whatever it has open, in a forked child: it goes on in the parent alone."""
        for channel in self._channels:
            channel.close()
        for cable in self._cables:
            cable.close()
        self._pci.close()

    def _plug_agent(self, listeners: tuple[int, ...]) -> ConsoleDevice:
        """The ports of the guest's agent, each with its socket."""
        channels = self._channels

        def port(index: int) -> Port:
            return Port(
                f"{_AGENT_PORT}.{index}",
                is_console=False,
                sink=lambda data: channels[index].send(data),
                on_room=lambda: self._loop.ask(lambda: channels[index].resume()),
            )

        def tell(index: int, present: bool) -> None:
            (console.open if present else console.close)(index)

        console = ConsoleDevice([port(index) for index in range(len(listeners))])
        for index, listener in enumerate(listeners):
            channels.append(
                Channel(
                    self._loop,
                    socket.socket(fileno=listener),
                    take=partial(console.feed, index),
                    on_presence=partial(tell, index),
                    on_room=partial(console.resume, index),
                )
            )
        self._pci.add(console)
        return console

    def _plug_disk(self, disk: DiskConfig) -> BlockDevice:
        device = BlockDevice(_open_disk(disk), serial=disk.serial, read_only=disk.read_only)
        self._pci.add(device)
        return device

    def _plug_nic(self, nic: NicConfig) -> Cable:
        mac = bytes.fromhex(nic.mac.replace(":", ""))
        cable = Cable(self._loop, socket.socket(fileno=nic.link), mac)
        self._pci.add(cable.card)
        return cable


def _open_disk(disk: DiskConfig) -> Disk:
    return open_chain(
        [(file.descriptor, file.format) for file in disk.files], read_only=disk.read_only
    )
