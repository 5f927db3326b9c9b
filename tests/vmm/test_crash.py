"""What is said of a guest that can go no further, of a vCPU that never ran."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cerne.kvm.exits import (
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    ShutdownExit,
    UnsupportedExit,
)
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import PAGE_SIZE, GuestAddress, GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.crash import describe

_CODE = bytes(range(64))


@pytest.fixture
def guest(kvm_device: Path) -> Iterator[tuple[Vcpu, GuestMemory]]:
    """A vCPU in real mode, in the midst of a page of code."""
    memory = GuestMemory.anonymous([(GuestAddress(0), 16 * PAGE_SIZE)])
    memory.write(0x1000, _CODE)
    memory.write_u64(0x2000, 0x1122334455667788)
    with Kvm(kvm_device) as kvm, kvm.create_vm() as vm:
        vm.set_memory(memory)
        with vm.create_vcpu(0) as vcpu:
            _go_to(vcpu, 0x1020)
            yield vcpu, memory


def _go_to(vcpu: Vcpu, address: int) -> None:
    sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
    sregs.cs.base, sregs.cs.selector = 0, 0
    regs.rip, regs.rsp = address, 0x2000
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)


@pytest.mark.parametrize(
    ("exit_", "reason", "likely"),
    [
        (ShutdownExit(), "a triple fault", "reboot=t"),
        (InternalErrorExit(1, (5, 7), b"\x0f\x01\xca"), "failed to emulate", "instruction: 0f 01"),
        (InternalErrorExit(2, (), b""), "exceptions that KVM does not combine", "handlers"),
        (InternalErrorExit(3, (1,), b""), "failed to deliver", "data: 0x1"),
        (InternalErrorExit(4, (), b""), "does not know", "newer kernel"),
        (InternalErrorExit(99, (), b""), "internal error 99", "rip=0x1020"),
        (FailEntryExit(0x80000021, 0), "refused to enter the guest (0x80000021)", "guest's state"),
        (FailEntryExit((1 << 64) - 1, 0), "refused to enter", "guest's state"),
        (FailEntryExit(0x80000029, 0), "refused to enter", "machine check"),
        (FailEntryExit(7, 0), "refused to enter the guest (0x7)", "set the processor up wrongly"),
        (UnsupportedExit(12345), "(12345)", ""),
        (HltExit(), "an unhandled exit", ""),
    ],
)
def test_why_and_where_is_said(
    guest: tuple[Vcpu, GuestMemory], exit_: Exit, reason: str, likely: str
) -> None:
    crash = describe(3, *guest, exit_)
    assert reason in crash.reason
    assert crash.reason.endswith("on vCPU 3 at 0x1020, real mode")
    assert likely in crash.report
    assert f"code: {_CODE[16:32].hex(' ')} <20> {_CODE[33:].hex(' ')}" in crash.report
    assert "stack: 0x1122334455667788 0x0 " in crash.report


def test_what_the_host_explains_better_is_said_instead(guest: tuple[Vcpu, GuestMemory]) -> None:
    report = describe(0, *guest, InternalErrorExit(1, (), b""), "this host is special").report
    assert "likely: this host is special" in report


def test_where_there_is_no_memory_that_is_said(guest: tuple[Vcpu, GuestMemory]) -> None:
    vcpu, memory = guest
    _go_to(vcpu, 0xF0000)
    assert "there is no memory at rip" in describe(0, vcpu, memory, ShutdownExit()).report
    # Nothing of the page before is taken for what stands before it.
    _go_to(vcpu, 0x0)
    assert "code: <" in describe(0, vcpu, memory, ShutdownExit()).report
