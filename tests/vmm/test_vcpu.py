"""A vCPU's thread, with a vCPU that is none."""

from __future__ import annotations

import errno
import threading

import pytest
from tests.waiting import PATIENCE

from cerne.devices.bus import Bus
from cerne.errors import KvmError
from cerne.kvm.exits import Exit, InterruptedExit
from cerne.kvm.memory import PAGE_SIZE, GuestAddress, GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.crash import Crash
from cerne.vmm.vcpu import Buses, VcpuThread


class _Broken(Vcpu):
    """Raises whatever it is told when it is to run."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self) -> object:  # type: ignore[override]
        raise self._error

    def kick(self) -> None:
        """There is no thread in the guest."""

    def kvmclock_ctrl(self) -> None:
        """It has a clock."""


class _Counting(Vcpu):
    """Runs to its next kick, and counts what it is told."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.kicked = threading.Event()
        self.pauses_told = 0

    def run(self) -> Exit:
        self.entered.set()
        assert self.kicked.wait(PATIENCE)
        self.kicked.clear()
        return InterruptedExit()

    def kick(self) -> None:
        self.kicked.set()

    def complete_exit(self) -> None:
        """There is none to complete."""

    def kvmclock_ctrl(self) -> None:
        self.pauses_told += 1
        if self.pauses_told == 2:
            raise KvmError("KVM_KVMCLOCK_CTRL", errno.EINVAL)


def test_the_guest_is_told_of_each_pause_if_it_can_be() -> None:
    vcpu = _Counting()
    memory = GuestMemory.anonymous([(GuestAddress(0), PAGE_SIZE)])
    thread = VcpuThread(0, vcpu, memory, Buses(Bus(), Bus()), lambda crash: None, None)
    thread.start()
    for turn in range(3):
        thread.resume()
        assert vcpu.entered.wait(PATIENCE)
        vcpu.entered.clear()
        thread.ask_to_pause()
        assert thread.wait_paused()
        assert vcpu.pauses_told == turn + 1
    assert thread.end()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KvmError("KVM_RUN", 14), "KVM_RUN failed: Bad address (vCPU 0)"),
        (RuntimeError("unforeseen"), "the machine monitor itself failed"),
    ],
)
def test_a_machine_does_not_linger_without_its_processor(error: Exception, said: str) -> None:
    crashes: list[Crash] = []
    memory = GuestMemory.anonymous([(GuestAddress(0), PAGE_SIZE)])
    buses = Buses(Bus(), Bus())
    thread = VcpuThread(0, _Broken(error), memory, buses, crashes.append, None)
    thread.resume()
    thread.start()
    thread.end()
    assert [crash.reason for crash in crashes] == [said]
