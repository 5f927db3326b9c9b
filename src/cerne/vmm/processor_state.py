"""The kernel's part of a machine's state (`cerne.kvm.state`) as plain JSON, and back."""

from __future__ import annotations

from cerne.devices.state import PlainState, SavedState
from cerne.errors import DamagedError
from cerne.kvm.abi import Irqchip
from cerne.kvm.state import VcpuState, VmState

_LARGEST_GROUP = 1 << 20
_ALL_ONES = (1 << 64) - 1
_LARGEST_MSR = (1 << 32) - 1


def plain_vcpu(state: VcpuState) -> PlainState:
    """A vCPU's state as JSON."""
    values = state._asdict()
    msrs = {f"{index:x}": value for index, value in state.msrs.items()}
    return {name: _plain(value) for name, value in values.items()} | {"msrs": msrs}


def vcpu_state(saved: SavedState) -> VcpuState:
    """Read the result of `plain_vcpu`; raises DamagedError for anything else."""
    msrs = saved.section("msrs")
    return VcpuState(
        cpuid=saved.data("cpuid", _LARGEST_GROUP),
        mp_state=saved.integer("mp_state", 0xFFFF),
        regs=saved.data("regs", _LARGEST_GROUP),
        sregs=saved.data("sregs", _LARGEST_GROUP),
        xsave=saved.data("xsave", _LARGEST_GROUP),
        xcrs=saved.data("xcrs", _LARGEST_GROUP),
        debugregs=saved.data("debugregs", _LARGEST_GROUP),
        lapic=saved.data("lapic", _LARGEST_GROUP),
        msrs={_index(name): msrs.integer(name, _ALL_ONES) for name in msrs},
        vcpu_events=saved.data("vcpu_events", _LARGEST_GROUP),
        tsc_khz=saved.integer("tsc_khz", 0xFFFFFFFF),
    )


def plain_vm(state: VmState) -> PlainState:
    """A VM's state as JSON."""
    return {
        "irqchips": [{"chip": chip.hex()} for chip in state.irqchips],
        "pit": state.pit.hex(),
        "clock": state.clock,
    }


def vm_state(saved: SavedState) -> VmState:
    """Read the result of `plain_vm`; raises DamagedError for anything else."""
    chips = saved.sections("irqchips", len(Irqchip))
    return VmState(
        irqchips=tuple(chip.data("chip", _LARGEST_GROUP) for chip in chips),
        pit=saved.data("pit", _LARGEST_GROUP),
        clock=saved.integer("clock", _ALL_ONES),
    )


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _index(name: str) -> int:
    try:
        index = int(name, 16)
    except ValueError as error:
        raise DamagedError(f"the saved vCPU has an MSR {name!r}, which does not exist") from error
    if not 0 <= index <= _LARGEST_MSR:
        raise DamagedError(f"the saved vCPU has an MSR {name!r}, which does not exist")
    return index
