"""Why a vCPU stopped, decoded once from `kvm_run` into one small type for each reason.

The two of the hot path, port and memory-mapped I/O, are named tuples, which cost a third of a
frozen dataclass; their data are the very bytes of `kvm_run` that the kernel reads when the vCPU
runs again, and are good until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class IoExit(NamedTuple):
    """The guest reads or writes a port (KVM_EXIT_IO)."""

    port: int
    size: int
    """Bytes of one access: 1, 2 or 4."""
    repeat: int
    """How many accesses follow each other (``rep outsb``); mostly 1."""
    is_write: bool
    data: memoryview
    """``size * repeat`` bytes: what was written, or where the answer goes."""

    @property
    def value(self) -> int:
        """What the guest wrote, as a number."""
        return int.from_bytes(self.data, "little")

    def answer(self, value: int) -> None:
        """Give the guest what it reads, cut to the size of the access."""
        length = len(self.data)
        self.data[:] = (value & ((1 << 8 * length) - 1)).to_bytes(length, "little")


class MmioExit(NamedTuple):
    """The guest reads or writes an address without memory (KVM_EXIT_MMIO)."""

    address: int
    is_write: bool
    data: memoryview
    """1 to 8 bytes: what was written, or where the answer goes."""

    @property
    def value(self) -> int:
        """What the guest wrote, as a number."""
        return int.from_bytes(self.data, "little")

    def answer(self, value: int) -> None:
        """Give the guest what it reads, cut to the size of the access."""
        length = len(self.data)
        self.data[:] = (value & ((1 << 8 * length) - 1)).to_bytes(length, "little")


@dataclass(frozen=True, slots=True)
class InterruptedExit:
    """A signal came: the vCPU was kicked (KVM_EXIT_INTR)."""


@dataclass(frozen=True, slots=True)
class HltExit:
    """The guest halted, and no interrupt controller of the kernel wakes it (KVM_EXIT_HLT)."""


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """A triple fault: the guest resets or is lost (KVM_EXIT_SHUTDOWN)."""


@dataclass(frozen=True, slots=True)
class InterruptWindowExit:
    """The guest can take an interrupt now (KVM_EXIT_IRQ_WINDOW_OPEN)."""


@dataclass(frozen=True, slots=True)
class DebugExit:
    """A breakpoint or a single step (KVM_EXIT_DEBUG)."""

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(frozen=True, slots=True)
class FailEntryExit:
    """The processor refused to enter the guest (KVM_EXIT_FAIL_ENTRY)."""

    reason: int
    cpu: int


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """The kernel could not go on with the guest (KVM_EXIT_INTERNAL_ERROR)."""

    suberror: int
    """An `InternalError`, or a number that is newer."""
    data: tuple[int, ...]
    instruction: bytes
    """The bytes that could not be emulated, where the kernel tells them; else empty."""


@dataclass(frozen=True, slots=True)
class SystemEventExit:
    """The guest asked for a shutdown, a reset or the like (KVM_EXIT_SYSTEM_EVENT)."""

    type: int
    data: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class IoapicEoiExit:
    """The guest ended an interrupt of a split IOAPIC (KVM_EXIT_IOAPIC_EOI)."""

    vector: int


@dataclass(frozen=True, slots=True)
class MsrExit:
    """The guest touches an MSR that is left to us (KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR).

    Answered by `Vcpu.answer_msr`.
    """

    index: int
    is_write: bool
    reason: int
    value: int
    """What was written; 0 for a read."""


@dataclass(frozen=True, slots=True)
class UnsupportedExit:
    """An exit that is not decoded here."""

    reason: int
    """An `ExitReason`, or a number that is newer."""


Exit = (
    IoExit
    | MmioExit
    | InterruptedExit
    | HltExit
    | ShutdownExit
    | InterruptWindowExit
    | DebugExit
    | FailEntryExit
    | InternalErrorExit
    | SystemEventExit
    | IoapicEoiExit
    | MsrExit
    | UnsupportedExit
)
