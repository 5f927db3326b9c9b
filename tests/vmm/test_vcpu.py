"""A vCPU's thread, with a vCPU that is none."""

from __future__ import annotations

import pytest

from cerne.devices.bus import Bus
from cerne.errors import KvmError
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KvmError("KVM_RUN", 14), "KVM_RUN failed: Bad address (vCPU 0)"),
        (RuntimeError("unforeseen"), "a fault of the machine monitor itself"),
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
