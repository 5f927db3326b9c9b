"""The PCI devices of a machine's board, and the host's side of each device."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from cerne.arch.x86 import layout
from cerne.devices.block.chain import open_chain
from cerne.devices.block.disk import Disk
from cerne.devices.limiter import Limiter
from cerne.devices.pvpanic import PanicNotifier
from cerne.devices.state import PlainState, SavedState
from cerne.devices.vhost_user.device import VhostUserBlock, VhostUserFs, VhostUserNet
from cerne.devices.virtio.block import BlockDevice, DiskCounts
from cerne.devices.virtio.console import ConsoleDevice, Port
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.net.device import NetLimits
from cerne.devices.virtio.rng import RngDevice
from cerne.errors import DamagedError, EngineError
from cerne.units import counted
from cerne.vmm.backend import FIRST_PATIENCE, Backend, MakeDevice
from cerne.vmm.balloon import Balloon
from cerne.vmm.board import Board
from cerne.vmm.cable import Cable
from cerne.vmm.channel import Channel
from cerne.vmm.config import BackendConfig, DiskConfig, NicConfig, VmmConfig, VsockConfig
from cerne.vmm.disk_thread import DiskThread, Rest, Rested, end_all
from cerne.vmm.loop import Loop, Ready
from cerne.vmm.memory_plug import MemoryPlug
from cerne.vmm.pci_host import PciHost, Watcher
from cerne.vmm.slot_names import device_name
from cerne.vmm.slots import Emit, Slots
from cerne.vmm.vsock import HostSockets

_MOST_DISK_QUEUES = 4
_AGENT_PORT = "org.cerne.agent"
_LONG = 30.0
"""Seconds for a request in progress, if nothing but the disk's own machine waits for it."""


class Limits(NamedTuple):
    """The limits of devices a second; None for no limit."""

    iops: int | None
    """Requests of all disks."""
    bps: int | None
    """Bytes of all disks."""
    receive: int | None
    """Bytes of all network cards to the guest."""
    send: int | None
    """Bytes of all network cards from the guest."""

    @property
    def disk(self) -> bool:
        """Whether disks have a limit."""
        return self.iops is not None or self.bps is not None

    @property
    def network(self) -> bool:
        """Whether network cards have a limit."""
        return self.receive is not None or self.send is not None


class Traffic(NamedTuple):
    """The bytes of frames that network cards moved."""

    received: int
    """To the guest."""
    sent: int
    """From the guest."""


class Peripherals:
    """A machine's devices in addition to its board's, from its configuration."""

    def __init__(self, board: Board, loop: Loop, config: VmmConfig, emit: Emit) -> None:
        self._loop = loop
        self._memory_left = config.balloon
        self._channels: list[Channel] = []
        self._pci = PciHost(board, loop)
        self._disk_limiter = Limiter()
        self._net_limits = NetLimits(
            Limiter(), Limiter(), lambda wait, action: loop.ask(lambda: loop.after(wait, action))
        )
        self._agent = self._plug_agent(config.agents)
        self._pci.add(RngDevice())
        wishes = board.wishes
        self._pci.add_function(
            PanicNotifier(wishes.panicked, wishes.crash_loaded, wishes.power_off)
        )
        self.balloon = Balloon(loop, board.memory, emit)
        self._pci.add(self.balloon.device)
        self.memory_plug = MemoryPlug(board, emit)
        self._set_balloon()
        if self.memory_plug.present:
            self._pci.add(self.memory_plug.device, layout.MEMORY_SLOT)
        self._sockets = None if config.vsock is None else self._plug_vsock(config.vsock)
        self._disks: list[tuple[int | None, DiskThread]] = []
        self.slots = Slots(board, loop, self._pci, emit, self._after_rest_of)
        self._cables: list[Cable] = []
        self._traffic_of_removed = Traffic(0, 0)
        self._counts_of_removed: list[DiskCounts] = []
        self._running = self._started = False
        self._backends: list[Backend] = []
        self._disk_queues = min(len(board.vcpus), _MOST_DISK_QUEUES)
        for disk in config.disks:
            self._add_disk(disk)
        for nic in config.nics:
            self._add_nic(nic)
        self._add_backends(config)

    def plug_disk(self, disk: DiskConfig) -> None:
        """Plug a disk into its slot while the machine runs; takes over its files.

        Raises:
            ConflictError: the slot is not empty.
            DamagedError: the configuration has no slot.
            CerneError: the disk is not usable.
        """
        try:
            slot = self._free_slot(disk.slot)
            _require_no_backend(disk)
            self._add_disk(disk)
        except BaseException:
            for file in disk.files:
                with contextlib.suppress(OSError):
                    os.close(file.descriptor)
            raise
        self.slots.announce(slot)

    def plug_nic(self, nic: NicConfig) -> None:
        """Plug a network card into its slot while the machine runs; takes over its link.

        Raises:
            ConflictError: the slot is not empty.
            DamagedError: the configuration has no slot.
        """
        try:
            slot = self._free_slot(nic.slot)
            self._add_nic(self._without_kernel(nic))
        except BaseException:
            for descriptor in nic.descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            raise
        self.slots.announce(slot)

    def set_limits(self, limits: Limits) -> None:
        """Limit all disks together, and all network cards together.

        Raises:
            EngineError: the host's kernel or another process serves one; all have former limits.
        """
        backends = [backend.device for backend in self._backends]
        if limits.disk and any(isinstance(device, VhostUserBlock) for device in backends):
            raise EngineError("another process serves a disk of the machine, which has no limit")
        outside = any(isinstance(device, VhostUserNet) for device in backends)
        if limits.network and (outside or any(cable.is_of_kernel for cable in self._cables)):
            raise EngineError(
                "the host's kernel serves a network card of the machine, which has no limit until"
                " the machine starts again"
            )
        self._disk_limiter.set(requests=limits.iops, size=limits.bps)
        for _, thread in self._disks:
            thread.limit_changed()
        self._net_limits.receive.set(size=limits.receive)
        self._net_limits.send.set(size=limits.send)
        for cable in self._cables:
            cable.card.limit_changed()

    def disk_counts(self) -> list[DiskCounts]:
        """What each disk that is served here has done, also those that were removed."""
        present = [thread.device.counts for _, thread in self._disks]
        return [*self._counts_of_removed, *present]

    def traffic(self) -> Traffic | None:
        """What all network cards moved; None if the kernel or another process serves one."""
        outside = any(isinstance(backend.device, VhostUserNet) for backend in self._backends)
        if outside or any(cable.is_of_kernel for cable in self._cables):
            return None
        cards = [cable.card for cable in self._cables]
        received, sent = self._traffic_of_removed
        return Traffic(
            received + sum(card.received for card in cards), sent + sum(card.sent for card in cards)
        )

    def require_growable(self) -> None:
        """Refuse to plug memory that another process, or the kernel, would not see.

        Raises:
            EngineError: the host's kernel serves a network card.
        """
        if any(cable.is_of_kernel for cable in self._cables):
            raise EngineError(
                "the host's kernel serves a network card of the machine, and has its memory as it"
                " was at the start"
            )

    def state(self) -> PlainState:
        """The state of every device; no vCPU may be running."""
        return {"bus": self._pci.state(), "slots": self.slots.state()}

    def restore(self, state: PlainState) -> None:
        """Restore `state`, with the same devices present.

        Raises:
            DamagedError: the state is not valid.
        """
        saved = SavedState("the devices", state)
        self._pci.restore(saved.plain("bus"))
        self.slots.restore(saved.plain("slots"))

    def rouse(self) -> None:
        """Serve every queue, and send an interrupt for every queue, after the board's restore."""
        # Former connections are gone, and data in transit may be lost.
        for port in range(len(self._agent.ports)):
            self._agent.close(port)
        self._pci.rouse()
        for cable in self._cables:
            cable.card.announce()
        self._set_balloon()

    def start(self) -> None:
        """Start the disks' threads, which rest until `resume`; the process has its privileges."""
        self._started = True
        for _, thread in self._disks:
            thread.start()
        for backend in self._backends:
            backend.start()

    def rest(self, patience: float, then: Rested) -> None:
        """Call a function while the disks rest: before a pause, a reset, or the read of a state.

        It gets an error if a disk does not rest within so many seconds.
        """
        Rest(self._loop, [thread for _, thread in self._disks]).begin(patience, then)

    def rest_in_slot(self, slot: int, patience: float, then: Rested) -> None:
        """The same for the device in a slot, before it is removed."""
        threads = [thread for at, thread in self._disks if at == slot]
        Rest(self._loop, threads).begin(patience, then)

    def after_rest(self, action: Ready) -> None:
        """Call a function when the disks rest, however long that takes."""
        self.rest(_LONG, partial(self._or_wait, self.after_rest, action))

    def pause(self) -> None:
        """Stop all other writers of the guest's memory, after the vCPUs, while the disks rest."""
        if self._running:
            for _, thread in self._disks:
                thread.hold_on()
        self._running = False
        for cable in self._cables:
            cable.pause()

    def resume(self) -> None:
        """Let all other writers work again, before the vCPUs run."""
        if not self._running:
            for _, thread in self._disks:
                thread.release()
        self._running = True
        for cable in self._cables:
            cable.resume()

    def power_off(self) -> None:
        """Make every device forget its driver, while the board still has the old VM.

        The disks rest.
        """
        self._pci.power_off()

    def power_on(self) -> None:
        """Return to the state of power-on, in the board's new VM; after `power_off`."""
        self._pci.power_on()
        self.slots.power_on()

    def switch_disks(self, disks: tuple[DiskConfig, ...]) -> list[Disk]:
        """Replace the disks by files of the same content, while they rest; return the old ones.

        Raises:
            DamagedError: their number is another one.
            CerneError: a disk is not usable.
        """
        ordered = sorted(disks, key=lambda disk: _order(disk.slot))
        present = sorted(self._disks, key=lambda each: _order(each[0]))
        if [disk.slot for disk in ordered] != [slot for slot, _ in present]:
            raise DamagedError(
                f"{counted(len(disks), 'new disk')} for {counted(len(present), 'disk')} of the"
                " machine, or for other slots"
            )
        fresh = [_open_disk(disk) for disk in ordered]
        return [
            thread.device.replace(disk) for (_, thread), disk in zip(present, fresh, strict=True)
        ]

    def finish(self) -> None:
        """Close the disks in order; no vCPU may be running."""
        threads = [thread for _, thread in self._disks]
        hung = end_all(threads, _LONG)
        for thread in hung:
            _report(f"{thread.name} has not finished a request within {_LONG:g} s; it is left open")
        for thread in threads:
            if thread not in hung:
                thread.device.close()
        for backend in self._backends:
            backend.finish()

    def abandon(self) -> None:
        """Close its descriptors in a forked child: it goes on only in the parent."""
        for channel in self._channels:
            channel.close()
        for cable in self._cables:
            cable.close()
        for _, thread in self._disks:
            thread.close()
        if self._sockets is not None:
            self._sockets.close()
        self._pci.close()

    def _set_balloon(self) -> None:
        if self._memory_left is not None:
            plugged = self.memory_plug.device.requested
            self.balloon.leave(max(1, self._memory_left - plugged))

    def _plug_agent(self, listeners: tuple[int, ...]) -> ConsoleDevice:
        """Add the ports of the guest's agent, each with its socket."""
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

    def _plug_vsock(self, vsock: VsockConfig) -> HostSockets:
        sockets = HostSockets(self._loop, vsock)
        self._pci.add(sockets.device)
        return sockets

    def _add_disk(self, disk: DiskConfig) -> None:
        if disk.backend is not None:
            self._add_backend(
                f"the backend of disk {len(self._disks) + len(self._backends)}",
                disk.backend,
                lambda link: VhostUserBlock(link, self._disk_queues, FIRST_PATIENCE),
            )
            return
        device = BlockDevice(
            _open_disk(disk),
            serial=disk.serial,
            read_only=disk.read_only,
            queues=self._disk_queues,
            limiter=self._disk_limiter,
        )
        thread = DiskThread(self._disk_name(disk), self._loop, device)
        entry = (disk.slot, thread)

        def gone() -> None:
            self._disks.remove(entry)
            self._counts_of_removed = [_sum([*self._counts_of_removed, device.counts])]
            end_all([thread], _LONG)
            thread.close()
            device.close()

        self._add(device, disk.slot, gone, thread)
        self._disks.append(entry)
        if self._started:
            thread.start()
        if self._running:
            thread.release()

    def _disk_name(self, disk: DiskConfig) -> str:
        """The name of a disk in errors."""
        place = f"{len(self._disks)}" if disk.slot is None else device_name(disk.slot)
        return f"disk {place}"

    def _after_rest_of(self, slot: int, action: Ready) -> None:
        """Call a function when the device in a slot rests, however long that takes."""
        again = partial(self._after_rest_of, slot)
        self.rest_in_slot(slot, _LONG, partial(self._or_wait, again, action))

    def _or_wait(
        self, wait: Callable[[Ready], None], action: Ready, error: EngineError | None
    ) -> None:
        if error is None:
            action()
            return
        _report(f"{error.message}; the machine waits for it")
        self._loop.ask(lambda: wait(action))

    def _add_nic(self, nic: NicConfig) -> None:
        cable = Cable(self._loop, nic, self._net_limits)

        def gone() -> None:
            self._cables.remove(cable)
            received, sent = self._traffic_of_removed
            self._traffic_of_removed = Traffic(
                received + cable.card.received, sent + cable.card.sent
            )
            cable.pull_out()

        self._add(cable.card, nic.slot, gone)
        self._cables.append(cable)
        if self._running:
            cable.resume()

    def _without_kernel(self, nic: NicConfig) -> NicConfig:
        """The same card, which the host's kernel does not serve if cards have a limit."""
        limited = self._net_limits.receive.active or self._net_limits.send.active
        if nic.vhost is None or not limited:
            return nic
        os.close(nic.vhost)
        return nic._replace(vhost=None)

    def _add_backends(self, config: VmmConfig) -> None:
        """Add the devices that backends serve, except disks."""
        for nic in config.backend_nics:
            mac = bytes.fromhex(nic.mac.replace(":", ""))
            self._add_backend(
                f"the backend of the network card {nic.mac}",
                nic.backend,
                partial(VhostUserNet, mac=mac, patience=FIRST_PATIENCE),
            )
        for share in config.shares:
            self._add_backend(
                f"the backend of the directory {share.tag}",
                share.backend,
                partial(VhostUserFs, tag=share.tag, patience=FIRST_PATIENCE),
            )

    def _add_backend(self, what: str, config: BackendConfig, make: MakeDevice) -> None:
        backend = Backend(what, config, make)
        self._backends.append(backend)
        self._pci.add(backend.device)

    def _add(
        self,
        device: VirtioDevice,
        slot: int | None,
        gone: Callable[[], None],
        watcher: Watcher | None = None,
    ) -> None:
        """Add a permanent device, or one in a slot, which can be removed."""
        if slot is None:
            self._pci.add(device, watcher=watcher)
        else:
            self.slots.add(slot, device, gone, watcher)

    def _free_slot(self, slot: int | None) -> int:
        if slot is None:
            raise DamagedError(
                "a device for a running machine needs a slot, and the configuration has none"
            )
        self.slots.require_free(slot)
        return slot


def _report(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _sum(counts: list[DiskCounts]) -> DiskCounts:
    return DiskCounts(
        reads=sum(each.reads for each in counts),
        writes=sum(each.writes for each in counts),
        read=sum(each.read for each in counts),
        written=sum(each.written for each in counts),
    )


def _order(slot: int | None) -> int:
    """Permanent disks come before disks in slots."""
    return -1 if slot is None else slot


def _require_no_backend(disk: DiskConfig) -> None:
    if disk.backend is not None:
        raise DamagedError("a running machine takes no disk that a backend serves")


def _open_disk(disk: DiskConfig) -> Disk:
    return open_chain(
        [(file.descriptor, file.format) for file in disk.files], read_only=disk.read_only
    )
