"""Why a vCPU stopped, decoded once from `kvm_run` into one small type for each reason.

The data of port and memory-mapped I/O are the bytes of `kvm_run` that the kernel reads when the
vCPU runs again, and are valid until then. Named tuples cost a third of a frozen dataclass, and are
defined in a tenth of the time.
"""

from __future__ import annotations

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


class _Bare:
    """An exit without data: all exits of one reason are equal."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))


class InterruptedExit(_Bare):
    """A signal came: the vCPU was kicked (KVM_EXIT_INTR)."""

    __slots__ = ()


class HltExit(_Bare):
    """The guest halted, and no interrupt controller of the kernel wakes it (KVM_EXIT_HLT)."""

    __slots__ = ()


class ShutdownExit(_Bare):
    """A triple fault: the guest resets or is lost (KVM_EXIT_SHUTDOWN)."""

    __slots__ = ()


class InterruptWindowExit(_Bare):
    """The guest can take an interrupt now (KVM_EXIT_IRQ_WINDOW_OPEN)."""

    __slots__ = ()


class DebugExit(NamedTuple):
    """A breakpoint or a single step (KVM_EXIT_DEBUG)."""

    exception: int
    pc: int
    dr6: int
    dr7: int


class FailEntryExit(NamedTuple):
    """The processor refused to enter the guest (KVM_EXIT_FAIL_ENTRY)."""

    reason: int
    cpu: int


class InternalErrorExit(NamedTuple):
    """The kernel stopped the guest (KVM_EXIT_INTERNAL_ERROR)."""

    suberror: int
    """An `InternalError`, or a number that is newer."""
    data: tuple[int, ...]
    instruction: bytes
    """The bytes of the instruction that the kernel failed to emulate, or empty."""


class SystemEventExit(NamedTuple):
    """The guest asked for a shutdown, a reset or the like (KVM_EXIT_SYSTEM_EVENT)."""

    type: int
    data: tuple[int, ...]


class IoapicEoiExit(NamedTuple):
    """The guest ended an interrupt of a split IOAPIC (KVM_EXIT_IOAPIC_EOI)."""

    vector: int


class MsrExit(NamedTuple):
    """The guest uses an MSR that user space handles (KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR).

    Answered by `Vcpu.answer_msr`.
    """

    number: int
    is_write: bool
    reason: int
    value: int
    """What was written; 0 for a read."""


class UnsupportedExit(NamedTuple):
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
