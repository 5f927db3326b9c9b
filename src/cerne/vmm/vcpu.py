"""One vCPU in a separate thread, which runs it, answers its exits, pauses and resumes it.

Handling an exit is a function of the buses and the exit. A callback from this thread tells the
owner what ends the machine.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import NamedTuple

from cerne.devices.bus import Bus
from cerne.errors import KvmError
from cerne.kvm.exits import (
    DebugExit,
    Exit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoExit,
    MmioExit,
)
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.crash import Crash, describe
from cerne.vmm.emulation_assist import HINT, EmulationAssist

_JOIN_TIMEOUT = 5.0


class Buses(NamedTuple):
    """The two address spaces in which a guest reaches devices."""

    ports: Bus
    memory: Bus


def answer(buses: Buses, exit_: IoExit | MmioExit) -> None:
    """Let a device answer an access."""
    if isinstance(exit_, MmioExit):
        if exit_.is_write:
            buses.memory.write(exit_.address, len(exit_.data), exit_.value)
        else:
            exit_.answer(buses.memory.read(exit_.address, len(exit_.data)))
        return
    for start in range(0, exit_.size * exit_.repeat, exit_.size):
        data = exit_.data[start : start + exit_.size]
        if exit_.is_write:
            buses.ports.write(exit_.port, exit_.size, int.from_bytes(data, "little"))
        else:
            value = buses.ports.read(exit_.port, exit_.size)
            data[:] = value.to_bytes(exit_.size, "little")


class VcpuThread:
    """Runs a vCPU until `end`, or until the guest crashes."""

    def __init__(
        self,
        index: int,
        vcpu: Vcpu,
        memory: GuestMemory,
        buses: Buses,
        on_crash: Callable[[Crash], None],
        assist: EmulationAssist | None,
    ) -> None:
        self.vcpu = vcpu
        self._index = index
        self._memory = memory
        self._buses = buses
        self._on_crash = on_crash
        self._assist = assist
        # Guards the thread's requested state and its present state.
        self._change = threading.Condition()
        self._wanted_paused = True
        self._wanted_end = False
        self._paused = False
        self._thread = threading.Thread(target=self._run, name=f"vcpu{index}", daemon=True)

    def start(self) -> None:
        """Start the thread; its vCPU waits for `resume`."""
        self._thread.start()

    @property
    def native_id(self) -> int:
        """The kernel's ID of the thread (gettid(2)); 0 before its start."""
        return self._thread.native_id or 0

    def resume(self) -> None:
        """Let the guest run."""
        with self._change:
            self._wanted_paused = False
            self._change.notify_all()

    def ask_to_pause(self) -> None:
        """Make the vCPU leave the guest; `wait_paused` waits for that."""
        with self._change:
            self._wanted_paused = True
            if not self._paused:
                self.vcpu.kick()

    def wait_paused(self) -> bool:
        """Wait until the vCPU has left the guest; return False if it did not in time."""
        with self._change:
            return self._change.wait_for(lambda: self._paused, _JOIN_TIMEOUT)

    def restored(self) -> None:
        """Note that the vCPU has a restored state; before it runs."""
        if self._assist is not None:
            self._assist.restored()

    def end(self, patience: float = _JOIN_TIMEOUT) -> bool:
        """End the vCPU, and wait for its thread; return whether the thread ended."""
        with self._change:
            self._wanted_end = True
            self._change.notify_all()
            self.vcpu.kick()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        crash: Crash | None = Crash("the machine monitor itself failed")
        try:
            crash = self._run_on()
        except KvmError as error:
            crash = Crash(f"{error.message} (vCPU {self._index})")
        finally:
            # Every failure here ends the machine, which is useless without its processor.
            if crash:
                self._on_crash(crash)
            # Threads that wait for the pause stop waiting.
            with self._change:
                self._paused = True
                self._change.notify_all()

    def _run_on(self) -> Crash | None:
        """Run until asked to stop; return the crash, if any."""
        while self._may_run():
            crash = self._step()
            if crash:
                return crash
        return None

    def _may_run(self) -> bool:
        """Wait while paused; return False at the end."""
        if not self._wanted_paused and not self._wanted_end:
            return True
        # A pending access to a device is complete only then, and the state is consistent.
        self.vcpu.complete_exit()
        with self._change:
            self._paused = True
            self._change.notify_all()
            self._change.wait_for(lambda: self._wanted_end or not self._wanted_paused)
            self._paused = False
            if self._wanted_end:
                return False
        self._tell_of_pause()
        return True

    def _tell_of_pause(self) -> None:
        """Keep the guest's watchdogs from reporting the pause as a lockup."""
        try:
            self.vcpu.kvmclock_ctrl()
        except KvmError as error:
            # A guest without kvm-clock has no such watchdog.
            if error.errno != errno.EINVAL:
                raise

    def _step(self) -> Crash | None:
        """Run to the next exit and answer it; return the crash, if any."""
        exit_ = self.vcpu.run()
        if isinstance(exit_, IoExit | MmioExit):
            answer(self._buses, exit_)
            if self._assist is not None:
                self._assist.after_exit()
            return None
        return self._rare(exit_)

    def _rare(self, exit_: Exit) -> Crash | None:
        match exit_:
            case InterruptedExit() | HltExit():
                if self._assist is not None:
                    self._assist.look()
                return None
            case InternalErrorExit() if self._assist and self._assist.take_failure(exit_):
                return None
            case DebugExit() if self._assist and self._assist.take_debug(exit_):
                return None
            case InternalErrorExit() if self._assist:
                return self._describe(exit_, HINT)
            case _:
                return self._describe(exit_)

    def _describe(self, exit_: Exit, hint: str = "") -> Crash:
        return describe(self._index, self.vcpu, self._memory, exit_, hint)
