"""One machine in this process: its board, its devices' host sides, its control socket, its end.

It runs, or is paused, until it has ended; a request that its state does not allow is refused. A
reset makes a new VM over the same memory, zeroed, in the same process, because only a new VM surely
has none of the old state in the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from cerne.arch.x86 import layout
from cerne.devices.power import GENERATION_CHANGED
from cerne.devices.state import PlainState, SavedState
from cerne.errors import CerneError, DamagedError, EngineError
from cerne.kvm.abi import kvm_cpuid_entry2
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.units import counted
from cerne.vmm.board import Board, GuestRequests
from cerne.vmm.channel import Channel
from cerne.vmm.config import VmmConfig
from cerne.vmm.console_log import ConsoleLog
from cerne.vmm.crash import Crash
from cerne.vmm.emulation_assist import EmulationAssist, command_line, without_hypercalls
from cerne.vmm.end import PANICKED, End
from cerne.vmm.jail.title import Title
from cerne.vmm.jail.walls import NOBODY, Walls
from cerne.vmm.loop import Loop
from cerne.vmm.peripherals import Peripherals
from cerne.vmm.qmp import Command, QmpServer
from cerne.vmm.runstate import RunState
from cerne.vmm.vcpu import VcpuThread

# Seconds, long enough for a busy host, because a machine that fails here is lost.
_RESET_PATIENCE = 60.0
_ROOT = 0
EMULATION_NOTICE = "this host's KVM emulates guests' kernel code: cerne.vmm.emulation_assist is on"


class Machine:
    """A machine in this process, from its assembly to its end.

    `state` is the saved state that it starts from; without it, it boots a kernel. The caller keeps
    the memory and the process's title, which a forked child uses again. `commands` makes what its
    control socket takes.
    """

    def __init__(
        self,
        kvm: Kvm,
        config: VmmConfig,
        memory: GuestMemory,
        state: PlainState | None,
        title: Title,
        commands: Callable[[Machine], Mapping[str, Command]],
    ) -> None:
        self.kvm = kvm
        self.config = config
        self.memory = memory
        self.title = title
        self.walls = Walls((), {})
        self._loop = Loop()
        self._end: End | None = None
        self._reset_cause = ""
        # Guards these two, which vCPU threads change too.
        self._wishing = threading.Lock()
        self._running = False
        wishes = GuestRequests(
            power_off=lambda: self._finish(End(True, "the guest shut down"), "guest-shutdown"),
            reset=lambda: self.reset("guest-reset"),
            panicked=lambda: self._finish(End(False, PANICKED), "guest-panic"),
            crash_loaded=lambda: self._loop.ask(self._announce_crash_kernel),
            console=self._console_output,
        )
        change = without_hypercalls if config.emulated else _unchanged
        self.board = Board(kvm, memory, config.cpus, wishes, change, config.max_cpus)
        self._console_log = ConsoleLog(config.console_log)
        self._console = Channel(self._loop, _socket(config.console), self.board.serial.feed)
        self.peripherals = Peripherals(self.board, self._loop, config, self.emit)
        self._threads = self._new_threads()
        self._qmp = QmpServer(
            self._loop, _socket(config.qmp), commands(self), _clients(config.owner)
        )
        if state is not None:
            self._restore(state)
            return
        if config.emulated:
            print(EMULATION_NOTICE, file=sys.stderr, flush=True)
        self._boot()

    def run(self) -> End:
        """Run the guest to its end, and return how it ended."""
        self.peripherals.start()
        self._start_threads(run=True)
        self._loop.run()
        for thread in self._threads:
            thread.end()
        self._qmp.flush()
        assert self._end is not None
        self._write_end(self._end)
        self.peripherals.finish()
        return self._end

    def state(self) -> PlainState:
        """The machine's state without its memory; it must be paused."""
        return {
            "cpus": self.config.cpus,
            "memory": self.memory.fixed_size,
            "headroom": self.memory.room[1],
            "plugged": sorted(self.memory.plugged),
            "board": self.board.state(),
            "pci": self.peripherals.state(),
        }

    @property
    def run_state(self) -> RunState:
        """Its run state."""
        if self._end is not None:
            return RunState.ENDED
        return RunState.RUNNING if self._running else RunState.PAUSED

    def require(self, what: str, *states: RunState) -> None:
        """Refuse a request that its state does not allow.

        Raises:
            EngineError: it is not in one of these states.
        """
        if self.run_state not in states:
            ended = f": {self._end.reason}" if self._end is not None else ""
            raise EngineError(
                f"the machine is {self.run_state.value}{ended}, which does not allow {what}"
            )

    @property
    def vcpu_threads(self) -> list[int]:
        """The kernel's IDs of its vCPUs' threads."""
        return [thread.native_id for thread in self._threads]

    def add_cpus(self, count: int) -> None:
        """Add vCPUs until there are so many, and tell the guest.

        Raises:
            EngineError: it has ended, or has no room for so many.
            KvmError: the kernel makes no other vCPU.
        """
        self.require("to add CPUs", RunState.RUNNING, RunState.PAUSED)
        if count > max(self.config.cpus, self.config.max_cpus):
            raise EngineError(f"the machine has room for {counted(self.config.max_cpus, 'CPU')}")
        if count <= self.config.cpus:
            return
        first = len(self._threads)
        new = [
            self._new_thread(first + index, vcpu)
            for index, vcpu in enumerate(self.board.add_vcpus(count))
        ]
        self.config = self.config._replace(cpus=count)
        self._threads += new
        for thread in new:
            thread.start()
            if self._running:
                thread.resume()
        self.board.announce_vcpus()

    def emit(self, event: str, data: Mapping[str, object] | None = None) -> None:
        """Send an event to all clients of the control socket."""
        self._qmp.emit(event, data)

    def end(self, reason: str, cause: str) -> None:
        """End it in order, at the host's request."""
        self._finish(End(True, reason), cause)

    def end_by_signal(self) -> None:
        """End it in order; may be called from a signal's handler."""
        said = "a signal asked its process to end"
        self._loop.ask(lambda: self.end(said, "host-signal"))

    def reset(self, cause: str) -> None:
        """Reset it, unless it has ended; from any thread.

        No vCPU runs before the reset is done, because a kernel tries other ways after a while.
        """
        with self._wishing:
            if self._end is not None or self._reset_cause:
                return
            self._reset_cause = cause
        for thread in self._threads:
            thread.ask_to_pause()
        self._loop.ask(lambda: self.peripherals.after_rest(self._reset_if_wished))

    def pause(self) -> bool:
        """Pause all vCPUs, while the disks rest; return whether they ran.

        Raises:
            EngineError: a vCPU does not stop, or the machine has ended.
        """
        self.require("to pause it", RunState.RUNNING, RunState.PAUSED)
        if not self._running:
            return False
        self._running = False
        for thread in self._threads:
            thread.ask_to_pause()
        if not all(thread.wait_paused() for thread in self._threads):
            self.resume()
            raise EngineError("a vCPU does not stop")
        # A request that a vCPU made before it stopped comes first.
        self._reset_if_wished()
        self.require("to pause it", RunState.PAUSED)
        self.peripherals.pause()
        return True

    def resume(self) -> None:
        """Let all vCPUs run.

        Raises:
            EngineError: the machine has ended.
        """
        self.require("to let it run", RunState.RUNNING, RunState.PAUSED)
        self._running = True
        self.peripherals.resume()
        for thread in self._threads:
            thread.resume()

    @contextlib.contextmanager
    def paused(self, *, resume: bool = True) -> Iterator[None]:
        """Pause it for the block, while the disks rest, and let it run afterwards if it ran.

        Without `resume` it runs afterwards only if the block fails.

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

    def abandon(self) -> None:
        """Close its descriptors in a forked child: it goes on only in the parent."""
        self._console.close()
        self.peripherals.abandon()
        self._qmp.close()
        self.board.close()
        self._loop.close()

    def _boot(self) -> None:
        boot, emulated = self.config.boot, self.config.emulated
        told = boot.command_line
        if emulated:
            told += f" {command_line(self.board.vcpus[0].get_tsc_khz())}"
            # Without ACPI the guest takes all that may come for there; the others stay offline.
            told += f" maxcpus={self.config.cpus}" if self.config.max_cpus else ""
        self.board.load(boot.kernel, boot.initrd, told, mp_table=emulated)
        # After the guest has started, which does not wait for this.
        self._loop.ask(self.board.let_ticks_be_missed)

    def _reset_if_wished(self) -> None:
        """Reset the machine, if a reset was requested; on the loop's thread, while disks rest."""
        if not self._reset_cause or self._end is not None:
            return
        try:
            ended = [thread.end(_RESET_PATIENCE) for thread in self._threads]
            if not all(ended):
                raise EngineError("a vCPU does not stop")
            self._power_on()
        except CerneError as error:
            self._finish(End(False, f"its reset failed: {error.message}"), "host-error")
            return
        with self._wishing:
            cause, self._reset_cause = self._reset_cause, ""
        self.emit("RESET", {"guest": cause.startswith("guest"), "reason": cause})
        self._start_threads(run=self._running)

    def _power_on(self) -> None:
        self.peripherals.power_off()
        self.board.power_on()
        self.peripherals.power_on()
        self._boot()
        self._threads = self._new_threads()

    def _restore(self, state: PlainState) -> None:
        saved = SavedState("a machine", state)
        for what, value in (("cpus", self.config.cpus), ("memory", self.memory.fixed_size)):
            if saved.integer(what, 1 << 52) != value:
                raise DamagedError(f"the saved machine has other {what} than this one")
        self.memory.write(layout.GENERATION_ID, os.urandom(16))
        self.peripherals.restore(saved.plain("pci"))
        self.board.restore(saved.plain("board"))
        self.peripherals.rouse()
        self.board.power.signal(GENERATION_CHANGED)
        for thread in self._threads:
            thread.restored()
        # After the guest has started: it uses another clock by then, and does not wait for this.
        self._loop.ask(self.board.let_ticks_be_missed)

    def _new_threads(self) -> list[VcpuThread]:
        self._assists: list[EmulationAssist] = []
        return [self._new_thread(index, vcpu) for index, vcpu in enumerate(self.board.vcpus)]

    def _new_thread(self, index: int, vcpu: Vcpu) -> VcpuThread:
        assist = self._assist(vcpu)
        return VcpuThread(index, vcpu, self.memory, self.board.buses, self._crashed, assist)

    def _start_threads(self, *, run: bool) -> None:
        for thread in self._threads:
            thread.start()
        if run:
            self.resume()

    def _assist(self, vcpu: Vcpu) -> EmulationAssist | None:
        if not self.config.emulated:
            return None
        self._assists.append(EmulationAssist(vcpu, self.board.memory, self._assists))
        return self._assists[-1]

    def _console_output(self, data: bytes) -> None:
        """Log the guest's output and pass it to an attached client; on vCPU threads."""
        self._console_log.write(data)
        self._loop.ask(lambda: self._pass_on(data))

    def _pass_on(self, data: bytes) -> None:
        self._console.send(data)

    def _crashed(self, crash: Crash) -> None:
        reason = f"the guest crashed: {crash.reason}"
        print(crash.report or reason, file=sys.stderr, flush=True)
        self._finish(End(False, reason), "guest-panic")

    def _finish(self, end: End, cause: str) -> None:
        """End the machine with this result; the first call counts. From any thread."""
        with self._wishing:
            if self._end is not None:
                return
            self._end = end
        self._loop.ask(lambda: self._announce_end(cause))

    def _announce_end(self, cause: str) -> None:
        guest = cause.startswith("guest")
        if cause == "guest-panic":
            self._qmp.emit("GUEST_PANICKED", {"action": "poweroff"})
        self._qmp.emit("SHUTDOWN", {"guest": guest, "reason": cause})
        self._loop.stop()

    def _announce_crash_kernel(self) -> None:
        self.emit("GUEST_CRASHLOADED", {"action": "run"})

    def _write_end(self, end: End) -> None:
        said = {"orderly": end.orderly, "reason": end.reason}
        os.write(self.config.ending, json.dumps(said).encode())


def _unchanged(_leaves: Sequence[kvm_cpuid_entry2]) -> None:
    """A guest where KVM runs guests' kernels has what KVM has."""


def _socket(descriptor: int) -> socket.socket:
    return socket.socket(fileno=descriptor)


def _clients(owner: int) -> frozenset[int]:
    """The users whose connections the control socket takes."""
    # In the user namespace of a machine without root, all other users have the last of these ids:
    # there only the directory of the socket keeps them out.
    return frozenset((_ROOT,)) if owner == _ROOT else frozenset((_ROOT, owner, NOBODY))
