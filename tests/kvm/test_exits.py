"""How exits are decoded from what the kernel leaves in kvm_run, with no KVM."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cerne.kvm import exits
from cerne.kvm.abi import ExitReason, InternalError
from cerne.kvm.memory import PAGE_SIZE
from cerne.kvm.vcpu import Vcpu


@pytest.fixture
def vcpu() -> Iterator[Vcpu]:
    """A vCPU over a file in the place of the kernel's."""
    descriptor = os.memfd_create("kvm_run")
    os.ftruncate(descriptor, 3 * PAGE_SIZE)
    with Vcpu(descriptor, 3 * PAGE_SIZE, 4096) as vcpu:
        yield vcpu


@pytest.mark.parametrize(
    ("reason", "stop"),
    [
        (ExitReason.HLT, exits.HltExit()),
        (ExitReason.SHUTDOWN, exits.ShutdownExit()),
        (ExitReason.INTR, exits.InterruptedExit()),
        (ExitReason.IRQ_WINDOW_OPEN, exits.InterruptWindowExit()),
        (ExitReason.HYPERV, exits.UnsupportedExit(27)),
        (9999, exits.UnsupportedExit(9999)),
    ],
)
def test_a_reason_alone(vcpu: Vcpu, reason: int, stop: exits.Exit) -> None:
    vcpu.kvm_run.exit_reason = reason
    assert vcpu._exit() == stop


def test_debug(vcpu: Vcpu) -> None:
    vcpu.kvm_run.exit_reason = ExitReason.DEBUG
    arch = vcpu.kvm_run.exit.debug.arch
    arch.exception, arch.pc, arch.dr6, arch.dr7 = 1, 0x1000, 2, 3
    assert vcpu._exit() == exits.DebugExit(1, 0x1000, 2, 3)


def test_fail_entry(vcpu: Vcpu) -> None:
    vcpu.kvm_run.exit_reason = ExitReason.FAIL_ENTRY
    failure = vcpu.kvm_run.exit.fail_entry
    failure.hardware_entry_failure_reason, failure.cpu = 0x80000021, 3
    assert vcpu._exit() == exits.FailEntryExit(0x80000021, 3)


def test_an_instruction_that_cannot_be_emulated_is_told(vcpu: Vcpu) -> None:
    vcpu.kvm_run.exit_reason = ExitReason.INTERNAL_ERROR
    failure = vcpu.kvm_run.exit.emulation_failure
    failure.suberror, failure.ndata, failure.flags = InternalError.EMULATION, 3, 1
    failure.insn_size = 3
    failure.insn_bytes[:3] = [0x0F, 0x01, 0xCA]
    stop = vcpu._exit()
    assert isinstance(stop, exits.InternalErrorExit)
    assert (stop.suberror, stop.instruction) == (1, bytes.fromhex("0f01ca"))
    assert len(stop.data) == 3


def test_other_internal_errors_have_no_instruction(vcpu: Vcpu) -> None:
    vcpu.kvm_run.exit_reason = ExitReason.INTERNAL_ERROR
    internal = vcpu.kvm_run.exit.internal
    internal.suberror, internal.ndata = InternalError.DELIVERY_EV, 2
    internal.data[:2] = [7, 8]
    assert vcpu._exit() == exits.InternalErrorExit(3, (7, 8), b"")


def test_numbers_of_data_that_cannot_be_are_cut(vcpu: Vcpu) -> None:
    vcpu.kvm_run.exit_reason = ExitReason.INTERNAL_ERROR
    vcpu.kvm_run.exit.internal.ndata = 0xFFFF_FFFF
    stop = vcpu._exit()
    assert isinstance(stop, exits.InternalErrorExit)
    assert len(stop.data) == 16


def test_system_event(vcpu: Vcpu) -> None:
    vcpu.kvm_run.exit_reason = ExitReason.SYSTEM_EVENT
    event = vcpu.kvm_run.exit.system_event
    event.type, event.ndata = 2, 1
    event.data[0] = 5
    assert vcpu._exit() == exits.SystemEventExit(2, (5,))


def test_ioapic_eoi(vcpu: Vcpu) -> None:
    vcpu.kvm_run.exit_reason = ExitReason.IOAPIC_EOI
    vcpu.kvm_run.exit.eoi.vector = 0x31
    assert vcpu._exit() == exits.IoapicEoiExit(0x31)


def test_registers_that_are_left_to_us(vcpu: Vcpu) -> None:
    msr = vcpu.kvm_run.exit.msr
    msr.index, msr.reason, msr.data = 0x10, 1, 99
    vcpu.kvm_run.exit_reason = ExitReason.X86_WRMSR
    assert vcpu._exit() == exits.MsrExit(0x10, True, 1, 99)
    vcpu.kvm_run.exit_reason = ExitReason.X86_RDMSR
    assert vcpu._exit() == exits.MsrExit(0x10, False, 1, 0)
    vcpu.answer_msr(1 << 40)
    assert (msr.error, msr.data) == (0, 1 << 40)
    vcpu.answer_msr(None)
    assert (msr.error, msr.data) == (1, 0)


def test_a_vcpu_that_is_closed_is_unmapped() -> None:
    descriptor = os.memfd_create("kvm_run")
    os.ftruncate(descriptor, PAGE_SIZE)
    vcpu = Vcpu(descriptor, PAGE_SIZE, 4096)
    vcpu.close()
    vcpu.close()
    assert vcpu._mapping.closed
