"""One machine in this process: its board, its devices' host sides, its control socket, its end."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cerne.devices.power import POWER_BUTTON
from cerne.devices.virtio.console import ConsoleDevice, Port
from cerne.devices.virtio.rng import RngDevice
from cerne.kvm.kvm import Kvm
from cerne.kvm.vcpu import Vcpu, handle_kicks
from cerne.vmm import jail
from cerne.vmm.board import Board, Wishes
from cerne.vmm.channel import Channel
from cerne.vmm.config import VmmConfig
from cerne.vmm.emulation_assist import COMMAND_LINE, EmulationAssist
from cerne.vmm.loop import Loop
from cerne.vmm.pci_host import PciHost
from cerne.vmm.qmp import QmpServer
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
    """A machine that is assembled, runs until something ends it, and is taken apart."""

    def __init__(self, config: VmmConfig) -> None:
        self._config = config
        self._loop = Loop()
        self._end: End | None = None
        # Of changes of `_end`, which vCPU threads make too.
        self._ending = threading.Lock()
        self._running = False
        # Opened now, as later nothing can be: written at the end, and empty after a kill.
        self._log = Path(config.console_log).open("ab", buffering=0)  # noqa: SIM115
        self._ending_file = Path(config.ending).open("wb", buffering=0)  # noqa: SIM115
        wishes = Wishes(
            power_off=lambda: self._finish(End(True, "the guest shut down"), "guest-shutdown"),
            reset=lambda: self._finish(End(True, "the guest rebooted"), "guest-reset"),
            console=self._console_output,
        )
        handle_kicks()
        self._kvm = Kvm()
        self._board = Board(self._kvm, config.memory, config.cpus, wishes)
        self._console = Channel(self._loop, Path(config.console_socket), self._board.serial.feed)
        pci = PciHost(self._board, self._loop)
        pci.add(self._agent_console())
        pci.add(RngDevice())
        self._threads = [
            VcpuThread(index, vcpu, self._board.buses, self._crashed, self._assist(vcpu))
            for index, vcpu in enumerate(self._board.vcpus)
        ]
        self._qmp = QmpServer(
            self._loop, socket.socket(fileno=config.qmp_descriptor), self._commands()
        )

    def run(self) -> End:
        """Load the kernel, run the guest until the end, and say how it ended."""
        config = self._config
        command_line = config.command_line
        if config.emulated:
            print(EMULATION_NOTICE, file=sys.stderr, flush=True)
            command_line = f"{command_line} {COMMAND_LINE}"
        initrd = Path(config.initrd) if config.initrd else None
        self._board.load(Path(config.kernel), initrd, command_line, mp_table=config.emulated)
        jail.enter()
        for thread in self._threads:
            thread.start()
        self._resume()
        self._loop.run()
        for thread in self._threads:
            thread.end()
        self._qmp.flush()
        assert self._end is not None
        self._write_end(self._end)
        self._board.close()
        return self._end

    def _agent_console(self) -> ConsoleDevice:
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

        console = ConsoleDevice([port(index) for index in range(len(self._config.agent_sockets))])
        for index, path in enumerate(self._config.agent_sockets):
            channels.append(
                Channel(
                    self._loop,
                    Path(path),
                    take=partial(console.feed, index),
                    on_presence=partial(tell, index),
                    on_room=partial(console.resume, index),
                )
            )
        return console

    def _assist(self, vcpu: Vcpu) -> EmulationAssist | None:
        if not self._config.emulated:
            return None
        return EmulationAssist(vcpu, self._board.memory)

    def _commands(self) -> dict[str, Callable[[], object]]:
        return {
            "query-status": self._query_status,
            "query-name": lambda: {"name": self._config.name},
            "query-cpus-fast": lambda: [
                {"cpu-index": index, "target": "x86_64"} for index in range(self._config.cpus)
            ],
            "stop": self._pause,
            "cont": self._resume,
            "system_powerdown": self._press_power_button,
            "system_reset": lambda: self._ended_by_host("it was told to reset", "host-qmp-reset"),
            "quit": lambda: self._ended_by_host("it was told to quit", "host-qmp-quit"),
        }

    def _query_status(self) -> object:
        status = "running" if self._running else "paused"
        return {"status": status, "running": self._running, "singlestep": False}

    def _pause(self) -> object:
        if self._running:
            self._running = False
            for thread in self._threads:
                thread.ask_to_pause()
            for thread in self._threads:
                thread.wait_paused()
            self._qmp.emit("STOP")
        return {}

    def _resume(self) -> object:
        if not self._running:
            self._running = True
            for thread in self._threads:
                thread.resume()
            self._qmp.emit("RESUME")
        return {}

    def _press_power_button(self) -> object:
        self._board.power.signal(POWER_BUTTON)
        self._qmp.emit("POWERDOWN")
        return {}

    def _ended_by_host(self, reason: str, cause: str) -> object:
        self._finish(End(True, reason), cause)
        return {}

    def _console_output(self, data: bytes) -> None:
        """Of vCPU threads: log what the guest writes, and pass it to whoever is attached."""
        self._log.write(data)
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
        self._ending_file.write(json.dumps(said).encode())
