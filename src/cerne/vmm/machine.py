"""One machine in this process: its board, its devices' host sides, its control socket, its end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from cerne.arch.x86 import layout
from cerne.devices.block.chain import open_chain
from cerne.devices.block.disk import Disk
from cerne.devices.power import GENERATION_CHANGED, POWER_BUTTON
from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.block import BlockDevice
from cerne.devices.virtio.console import ConsoleDevice, Port
from cerne.devices.virtio.rng import RngDevice
from cerne.errors import DamagedError, EngineError
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.board import Board, Wishes
from cerne.vmm.cable import Cable
from cerne.vmm.channel import Channel
from cerne.vmm.config import BootConfig, DiskConfig, VmmConfig
from cerne.vmm.emulation_assist import COMMAND_LINE, EmulationAssist, without_hypercalls
from cerne.vmm.fork import fork, save
from cerne.vmm.loop import Loop
from cerne.vmm.pci_host import PciHost
from cerne.vmm.qmp import QmpServer, Request
from cerne.vmm.vcpu import VcpuThread

_AGENT_PORT = "org.cerne.agent"

EMULATION_NOTICE = (
    "this host's KVM emulates guests' kernel code: the helps of cerne.vmm.emulation_assist are on"
)


@dataclass(frozen=True, slots=True)
class End:
    """How a machine ended."""

    orderly: bool
    reason: str


class Machine:
    """A machine that is assembled, runs until something ends it, and is taken apart.

    `state` is what a machine that it goes on from was; without it, a kernel is booted. The
    memory is the caller's, and outlives the machine where that forks.
    """

    def __init__(
        self, kvm: Kvm, config: VmmConfig, memory: GuestMemory, state: PlainState | None
    ) -> None:
        self.kvm = kvm
        self.config = config
        self.memory = memory
        self._loop = Loop()
        self._end: End | None = None
        # Of changes of `_end`, which vCPU threads make too.
        self._ending = threading.Lock()
        self._running = False
        wishes = Wishes(
            power_off=lambda: self._finish(End(True, "the guest shut down"), "guest-shutdown"),
            reset=lambda: self._finish(End(True, "the guest rebooted"), "guest-reset"),
            console=self._console_output,
        )
        changes = (without_hypercalls,) if config.emulated else ()
        self._board = Board(kvm, memory, config.cpus, wishes, *changes)
        self._console = Channel(self._loop, _socket(config.console), self._board.serial.feed)
        self._channels = [self._console]
        self._pci = PciHost(self._board, self._loop)
        self._agent = self._plug_agent()
        self._pci.add(RngDevice())
        self._disks = [self._plug_disk(disk) for disk in config.disks]
        self._cables = [
            Cable(self._loop, _socket(nic.link), bytes.fromhex(nic.mac.replace(":", "")))
            for nic in config.nics
        ]
        for cable in self._cables:
            self._pci.add(cable.card)
        self._assists: list[EmulationAssist] = []
        self._threads = [
            VcpuThread(index, vcpu, self._board.buses, self._crashed, self._assist(vcpu))
            for index, vcpu in enumerate(self._board.vcpus)
        ]
        self._qmp = QmpServer(self._loop, _socket(config.qmp), self._commands())
        if state is None:
            self._boot()
        else:
            self._restore(state)

    def run(self) -> End:
        """Run the guest until the end, and say how it ended."""
        for thread in self._threads:
            thread.start()
        self.resume()
        self._loop.run()
        for thread in self._threads:
            thread.end()
        self._qmp.flush()
        assert self._end is not None
        self._write_end(self._end)
        for disk in self._disks:
            disk.close()
        return self._end

    def state(self) -> PlainState:
        """All that it is but its memory; it must be paused."""
        return {
            "cpus": self.config.cpus,
            "memory": self.memory.size,
            "board": self._board.state(),
            "pci": self._pci.state(),
        }

    def pause(self) -> bool:
        """Take all vCPUs out of the guest; whether they ran.

        Raises:
            EngineError: one does not stop.
        """
        if not self._running:
            return False
        self._running = False
        for thread in self._threads:
            thread.ask_to_pause()
        if not all(thread.wait_paused() for thread in self._threads):
            self.resume()
            raise EngineError("a vCPU does not stop")
        return True

    def resume(self) -> None:
        """Let all vCPUs run on."""
        self._running = True
        for thread in self._threads:
            thread.resume()

    @contextlib.contextmanager
    def paused(self, *, resume: bool = True) -> Iterator[None]:
        """Pause it, where it runs, and let it run on afterwards.

        Without `resume` only what goes wrong lets it run on.

        Raises:
            EngineError: a vCPU does not stop.
        """
        ran = self.pause()
        try:
            yield
        except Exception:
            if ran:
                self.resume()
            raise
        if ran and resume:
            self.resume()

    def switch_disks(self, disks: tuple[DiskConfig, ...]) -> list[Disk]:
        """Go on with other files, of the same content, while it is paused; those that it had.

        They are to be closed, which may take a while: once it runs again.

        Raises:
            DamagedError: they are not as many as it has.
            CerneError: one cannot be used.
        """
        if len(disks) != len(self._disks):
            raise DamagedError(f"{len(disks)} disks do not replace {len(self._disks)}")
        fresh = [_open_disk(disk) for disk in disks]
        return [device.replace(disk) for device, disk in zip(self._disks, fresh, strict=True)]

    def abandon(self) -> None:
        """Close whatever it has open, in a forked child: it goes on in the parent alone."""
        for channel in self._channels:
            channel.close()
        for cable in self._cables:
            cable.close()
        self._qmp.close()
        self._pci.close()
        self._board.close()
        self._loop.close()

    def _boot(self) -> None:
        config = self.config
        boot = config.origin
        assert isinstance(boot, BootConfig)
        command_line = boot.command_line
        if config.emulated:
            print(EMULATION_NOTICE, file=sys.stderr, flush=True)
            command_line = f"{command_line} {COMMAND_LINE}"
        self._board.let_ticks_be_missed()
        self._board.load(boot.kernel, boot.initrd, command_line, mp_table=config.emulated)

    def _restore(self, state: PlainState) -> None:
        saved = SavedState("a machine", state)
        for what, value in (("cpus", self.config.cpus), ("memory", self.memory.size)):
            if saved.integer(what, 1 << 52) != value:
                raise DamagedError(f"the saved machine has other {what} than this one")
        self.memory.write(layout.GENERATION_ID, os.urandom(16))
        self._pci.restore(saved.plain("pci"))
        self._board.restore(saved.plain("board"))
        # Whoever was connected is so no more, and what was on its way may be lost.
        for port in range(len(self.config.agents)):
            self._agent.close(port)
        self._pci.rouse()
        self._board.power.signal(GENERATION_CHANGED)
        for thread in self._threads:
            thread.restored()
        # Once the guest runs: it has turned to another clock, and need not wait for this.
        self._loop.ask(self._board.let_ticks_be_missed)

    def _plug_agent(self) -> ConsoleDevice:
        """The ports of the guest's agent, each with its socket."""
        channels: list[Channel] = []

        def port(index: int) -> Port:
            return Port(
                f"{_AGENT_PORT}.{index}",
                is_console=False,
                sink=lambda data: channels[index].send(data),
                on_room=lambda: self._loop.ask(lambda: channels[index].resume()),
            )

        def tell(index: int, present: bool) -> None:
            (console.open if present else console.close)(index)

        console = ConsoleDevice([port(index) for index in range(len(self.config.agents))])
        for index, listener in enumerate(self.config.agents):
            channels.append(
                Channel(
                    self._loop,
                    _socket(listener),
                    take=partial(console.feed, index),
                    on_presence=partial(tell, index),
                    on_room=partial(console.resume, index),
                )
            )
        self._channels += channels
        self._pci.add(console)
        return console

    def _plug_disk(self, disk: DiskConfig) -> BlockDevice:
        device = BlockDevice(_open_disk(disk), serial=disk.serial, read_only=disk.read_only)
        self._pci.add(device)
        return device

    def _assist(self, vcpu: Vcpu) -> EmulationAssist | None:
        if not self.config.emulated:
            return None
        self._assists.append(EmulationAssist(vcpu, self._board.memory, self._assists))
        return self._assists[-1]

    def _commands(self) -> dict[str, Callable[[Request], object]]:
        return {
            "query-status": self._query_status,
            "query-name": lambda _: {"name": self.config.name},
            "query-cpus-fast": lambda _: [
                {"cpu-index": index, "target": "x86_64"} for index in range(self.config.cpus)
            ],
            "stop": self._stop,
            "cont": self._cont,
            "system_powerdown": self._press_power_button,
            "system_reset": lambda _: self._ended_by_host("it was told to reset", "host-qmp-reset"),
            "quit": lambda _: self._ended_by_host("it was told to quit", "host-qmp-quit"),
            "cerne-save": partial(save, self),
            "cerne-fork": partial(fork, self),
        }

    def _query_status(self, _: Request) -> object:
        status = "running" if self._running else "paused"
        return {"status": status, "running": self._running, "singlestep": False}

    def _stop(self, _: Request) -> object:
        if self.pause():
            self._qmp.emit("STOP")
        return {}

    def _cont(self, _: Request) -> object:
        if not self._running:
            self.resume()
            self._qmp.emit("RESUME")
        return {}

    def _press_power_button(self, _: Request) -> object:
        self._board.power.signal(POWER_BUTTON)
        self._qmp.emit("POWERDOWN")
        return {}

    def _ended_by_host(self, reason: str, cause: str) -> object:
        self._finish(End(True, reason), cause)
        return {}

    def _console_output(self, data: bytes) -> None:
        """Of vCPU threads: log what the guest writes, and pass it to whoever is attached."""
        os.write(self.config.console_log, data)
        self._loop.ask(lambda: self._pass_on(data))

    def _pass_on(self, data: bytes) -> None:
        self._console.send(data)

    def _crashed(self, what: str) -> None:
        print(f"the guest crashed: {what}", file=sys.stderr, flush=True)
        self._finish(End(False, f"the guest crashed: {what[:200]}"), "guest-panic")

    def _finish(self, end: End, cause: str) -> None:
        """Let the machine end so; the first to say counts. From any thread."""
        with self._ending:
            if self._end is not None:
                return
            self._end = end
        self._loop.ask(lambda: self._announce_end(cause))

    def _announce_end(self, cause: str) -> None:
        guest = cause.startswith("guest")
        if cause.endswith("reset"):
            self._qmp.emit("RESET", {"guest": guest, "reason": cause})
        if cause == "guest-panic":
            self._qmp.emit("GUEST_PANICKED", {"action": "poweroff"})
        self._qmp.emit("SHUTDOWN", {"guest": guest, "reason": cause})
        self._loop.stop()

    def _write_end(self, end: End) -> None:
        said = {"orderly": end.orderly, "reason": end.reason}
        os.write(self.config.ending, json.dumps(said).encode())


def _socket(descriptor: int) -> socket.socket:
    return socket.socket(fileno=descriptor)


def _open_disk(disk: DiskConfig) -> Disk:
    return open_chain(
        [(file.descriptor, file.format) for file in disk.files], read_only=disk.read_only
    )
