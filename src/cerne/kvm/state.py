"""The complete state of a vCPU and of a VM in the kernel, saved and restored in one call.

Plain bytes and numbers, separate from the live objects, and untrusted at a restore: sizes are
checked here, the values by the kernel. Guest memory is not part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Structure, sizeof
from typing import NamedTuple, TypeVar

from cerne.errors import DamagedError
from cerne.kvm import abi
from cerne.kvm.abi import Irqchip, MpState
from cerne.kvm.vcpu import Vcpu
from cerne.kvm.vm import Vm
from cerne.units import counted

_State = TypeVar("_State", bound=Structure)


class VcpuState(NamedTuple):
    """A vCPU's state; each group of bytes is the kernel's structure of that name."""

    cpuid: bytes
    """`kvm_cpuid_entry2` after `kvm_cpuid_entry2`."""
    mp_state: int
    regs: bytes
    sregs: bytes
    xsave: bytes
    xcrs: bytes
    debugregs: bytes
    lapic: bytes
    msrs: dict[int, int]
    vcpu_events: bytes
    tsc_khz: int


class VmState(NamedTuple):
    """A VM's interrupt controllers, timer and clock."""

    irqchips: tuple[bytes, ...]
    """`kvm_irqchip` for each `Irqchip`, in their order."""
    pit: bytes
    """`kvm_pit_state2`, or empty for a VM that has no timer."""
    clock: int
    """kvm-clock in nanoseconds."""


def save_vcpu(vcpu: Vcpu, msrs: Sequence[int]) -> VcpuState:
    """A vCPU's state; `msrs` as `Kvm.get_msr_index_list` says.

    Call `Vcpu.complete_exit` before, if its last exit was I/O.

    Raises:
        KvmError: the kernel refused.
    """
    return VcpuState(
        cpuid=b"".join(bytes(entry) for entry in vcpu.get_cpuid2()),
        # Read before the registers, because this makes the kernel handle pending events.
        mp_state=vcpu.get_mp_state(),
        regs=bytes(vcpu.get_regs()),
        sregs=bytes(vcpu.get_sregs()),
        xsave=bytes(vcpu.get_xsave()),
        xcrs=bytes(vcpu.get_xcrs()),
        debugregs=bytes(vcpu.get_debugregs()),
        lapic=bytes(vcpu.get_lapic()),
        msrs=vcpu.get_msrs(msrs),
        vcpu_events=bytes(vcpu.get_vcpu_events()),
        tsc_khz=vcpu.get_tsc_khz(),
    )


def restore_vcpu(vcpu: Vcpu, state: VcpuState) -> None:
    """Restore a saved state into a new vCPU.

    Raises:
        DamagedError: a group does not have the size of its structure.
        KvmError: the kernel refused.
    """
    # CPUID decides what the rest may hold; the local APIC comes before the MSRs, since the TSC
    # deadline is only taken in the APIC timer's deadline mode.
    vcpu.set_cpuid2(_entries(state.cpuid))
    vcpu.set_mp_state(_mp_state(state.mp_state))
    vcpu.set_regs(_structure(abi.kvm_regs, state.regs))
    vcpu.set_sregs(_structure(abi.kvm_sregs, state.sregs))
    _set_xsave(vcpu, state.xsave)
    vcpu.set_xcrs(_structure(abi.kvm_xcrs, state.xcrs))
    vcpu.set_debugregs(_structure(abi.kvm_debugregs, state.debugregs))
    vcpu.set_lapic(_structure(abi.kvm_lapic_state, state.lapic))
    vcpu.set_msrs(state.msrs)
    vcpu.set_vcpu_events(_structure(abi.kvm_vcpu_events, state.vcpu_events))


def save_vm(vm: Vm, *, pit: bool = True) -> VmState:
    """The state of a VM whose interrupt controllers the kernel has.

    Raises:
        KvmError: the kernel refused.
    """
    return VmState(
        irqchips=tuple(bytes(vm.get_irqchip(chip)) for chip in Irqchip),
        pit=bytes(vm.get_pit2()) if pit else b"",
        clock=vm.get_clock().clock,
    )


def restore_vm(vm: Vm, state: VmState) -> None:
    """Restore a saved state into a VM with the same controllers.

    Raises:
        DamagedError: a part does not have the size of its structure.
        KvmError: the kernel refused.
    """
    if state.pit:
        vm.set_pit2(_structure(abi.kvm_pit_state2, state.pit))
    vm.set_clock(state.clock)
    for chip in state.irqchips:
        vm.set_irqchip(_structure(abi.kvm_irqchip, chip))


def _structure(kind: type[_State], data: bytes) -> _State:
    if len(data) != sizeof(kind):
        raise DamagedError(
            f"the saved {kind.__name__} has {counted(len(data), 'byte')}, not {sizeof(kind)}"
        )
    return kind.from_buffer_copy(data)


def _entries(data: bytes) -> list[abi.kvm_cpuid_entry2]:
    size = sizeof(abi.kvm_cpuid_entry2)
    if len(data) % size:
        raise DamagedError(f"the saved CPUID leaves have {counted(len(data), 'byte')}")
    return [
        abi.kvm_cpuid_entry2.from_buffer_copy(data, start) for start in range(0, len(data), size)
    ]


def _mp_state(value: int) -> MpState:
    try:
        return MpState(value)
    except ValueError as error:
        raise DamagedError(f"the saved vCPU has the state {value}, which does not exist") from error


def _set_xsave(vcpu: Vcpu, data: bytes) -> None:
    try:
        vcpu.set_xsave(data)
    except ValueError as error:
        raise DamagedError(f"{error}: it was saved on another kind of processor") from error
