"""One vCPU in a thread of its own: it runs, its exits are answered, it is paused and resumed.

Handling an exit is a function of the buses and the exit. What ends the machine is told to its
owner by a callback, from this thread.
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
    """The two address spaces in which a guest meets devices."""

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
    """Runs a vCPU until it is told to stop, or the guest can go no further."""

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
        # Guards what is wanted of the thread and what it is at.
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
        """The kernel's ID of the thread (gettid(2)); 0 before it was started."""
        return self._thread.native_id or 0

    def resume(self) -> None:
        """Let the guest run."""
        with self._change:
            self._wanted_paused = False
            self._change.notify_all()

    def ask_to_pause(self) -> None:
        """Take the vCPU out of the guest; `wait_paused` waits until it is."""
        with self._change:
            self._wanted_paused = True
            if not self._paused:
                self.vcpu.kick()

    def wait_paused(self) -> bool:
        """Wait until the vCPU is out of the guest; whether it came in time."""
        with self._change:
            return self._change.wait_for(lambda: self._paused, _JOIN_TIMEOUT)

    def restored(self) -> None:
        """The vCPU has been given a saved state; before it runs."""
        if self._assist is not None:
            self._assist.restored()

    def end(self, patience: float = _JOIN_TIMEOUT) -> bool:
        """Take the vCPU out of the guest for good, and wait for its thread; whether it ended."""
        with self._change:
            self._wanted_end = True
            self._change.notify_all()
            self.vcpu.kick()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _run(self) -> None:
        crash: Crash | None = Crash("a fault of the machine monitor itself")
        try:
            crash = self._run_on()
        except KvmError as error:
            crash = Crash(f"{error.message} (vCPU {self._index})")
        finally:
            # Whatever goes wrong here: a machine does not linger without its processor.
            if crash:
                self._on_crash(crash)
            # Who waits for it to pause need wait no longer.
            with self._change:
                self._paused = True
                self._change.notify_all()

    def _run_on(self) -> Crash | None:
        """Run until told to stop; why the guest can go no further, or nothing."""
        while self._may_run():
            crash = self._step()
            if crash:
                return crash
        return None

    def _may_run(self) -> bool:
        """Wait while paused; False at the end."""
        if not self._wanted_paused and not self._wanted_end:
            return True
        # What the guest asked of a device is only done then, and its state fit to be read.
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
        """Keep the guest's watchdogs from taking the time that it did not run for a lockup."""
        try:
            self.vcpu.kvmclock_ctrl()
        except KvmError as error:
            # A guest that uses no kvm-clock has no such watchdog to tell.
            if error.errno != errno.EINVAL:
                raise

    def _step(self) -> Crash | None:
        """Run to the next exit and answer it; why the guest can go no further, or nothing."""
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
