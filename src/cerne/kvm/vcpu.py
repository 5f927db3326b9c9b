"""One vCPU of the kernel: runs it, decodes its exits, and reads and writes its state.

Methods are named after the ioctls (Documentation/virt/kvm/api.rst). A vCPU belongs to the thread
that runs it; only `kick` may be called from another. An ioctl that the kernel refuses raises
`KvmError`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import signal
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import Structure, sizeof
from types import FrameType
from typing import TypeVar

from cerne.errors import KvmError
from cerne.kvm import abi, exits
from cerne.kvm._descriptor import Descriptor
from cerne.kvm._ioctl import ioctl, signal_thread
from cerne.kvm._structure import offset_of
from cerne.kvm.abi import ExitReason, Flexible, GuestDebug, InternalError, Ioctl, MpState
from cerne.kvm.msr import read_msrs, write_msrs
from cerne.kvm.stats import Counter, Statistics, read_stats
from cerne.units import counted

KICK_SIGNAL = signal.SIGRTMIN
"""The signal that takes a vCPU out of the guest; `handle_kicks` installs its handler."""

_EXIT = offset_of(abi.kvm_run, "exit")
_IMMEDIATE_EXIT = offset_of(abi.kvm_run, "immediate_exit")
_MMIO_DATA = _EXIT + offset_of(abi.kvm_run_mmio, "data")
# The fields of kvm_run_io and kvm_run_mmio in one move; the tests compare them with the ABI.
_IO = struct.Struct("=BBHIQ")
_MMIO = struct.Struct("=Q8xIB")
_REASON = struct.Struct("=I")
_REASON_OFFSET = offset_of(abi.kvm_run, "exit_reason")

_MAX_CPUID_ENTRIES = 256

_State = TypeVar("_State", bound=Structure)


def handle_kicks() -> None:
    """Let kicks interrupt vCPUs; called once, by the main thread, before the first runs."""
    signal.signal(KICK_SIGNAL, _ignore)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal alone interrupts the vCPU."""


class Vcpu(Descriptor):
    """A vCPU; made by `Vm.create_vcpu`."""

    def __init__(self, descriptor: int, mmap_size: int, xsave_size: int) -> None:
        super().__init__(descriptor)
        try:
            self._mapping = mmap.mmap(descriptor, mmap_size)
        except OSError as error:
            super().close()
            raise KvmError("mmap", error.errno or errno.ENOMEM) from error
        self._view = memoryview(self._mapping)
        self._run = abi.kvm_run.from_buffer(self._mapping)
        self._xsave_size = xsave_size
        self._exits: Counter | None = None
        self._thread = 0
        self._native_thread = 0

    def close(self) -> None:
        """Close the vCPU, which no thread may be running, and unmap its shared memory.

        A forked child calls this too: the mapping keeps the parent's VM in the kernel.
        """
        super().close()
        if self._exits is not None:
            self._exits.close()
            self._exits = None
        self._view.release()
        self._run = abi.kvm_run()
        # An exit's data that is still referenced keeps the mapping until it is dropped.
        with contextlib.suppress(BufferError):
            self._mapping.close()

    @property
    def kvm_run(self) -> abi.kvm_run:
        """The memory that the kernel and this process share."""
        return self._run

    def run(self) -> exits.Exit:
        """Run the guest until it needs us, or a signal comes.

        Raises:
            KvmError: the kernel fails to run it.
        """
        thread = threading.get_ident()
        if thread != self._thread:
            self._thread = thread
            self._native_thread = threading.get_native_id()
        try:
            fcntl.ioctl(self._descriptor, Ioctl.KVM_RUN, 0)
        except (InterruptedError, BlockingIOError):
            # EAGAIN: a vCPU that waits to be started was woken, and has to be run again.
            self._view[_IMMEDIATE_EXIT] = 0
            return exits.InterruptedExit()
        except OSError as error:
            raise KvmError(Ioctl.KVM_RUN.name, error.errno or errno.EIO) from error
        return self._exit()

    def kick(self) -> None:
        """Take the vCPU out of the guest, or stop it from entering: `run` is interrupted.

        From any thread. If the vCPU is not in `run`, its next `run` returns at once.
        """
        self._view[_IMMEDIATE_EXIT] = 1
        if self._native_thread:
            signal_thread(self._native_thread, KICK_SIGNAL)

    def complete_exit(self) -> None:
        """Let the guest take the answer to its last exit, without running on.

        An I/O access is complete only then; before that the state is not consistent.
        """
        self._view[_IMMEDIATE_EXIT] = 1
        try:
            fcntl.ioctl(self._descriptor, Ioctl.KVM_RUN, 0)
        except InterruptedError:
            return
        except OSError as error:
            raise KvmError(Ioctl.KVM_RUN.name, error.errno or errno.EIO) from error
        finally:
            self._view[_IMMEDIATE_EXIT] = 0

    def answer_msr(self, value: int | None) -> None:
        """Answer an `MsrExit`: the value that a read gets, or None for a fault (#GP)."""
        self._run.exit.msr.error = value is None
        self._run.exit.msr.data = value or 0

    # State groups

    def get_regs(self) -> abi.kvm_regs:
        """The general registers."""
        return self._get(Ioctl.KVM_GET_REGS, abi.kvm_regs())

    def set_regs(self, regs: abi.kvm_regs) -> None:
        """Set the general registers."""
        ioctl(self._descriptor, Ioctl.KVM_SET_REGS, regs)

    def get_sregs(self) -> abi.kvm_sregs:
        """Segments, control registers and the like."""
        return self._get(Ioctl.KVM_GET_SREGS, abi.kvm_sregs())

    def set_sregs(self, sregs: abi.kvm_sregs) -> None:
        """Set segments, control registers and the like."""
        ioctl(self._descriptor, Ioctl.KVM_SET_SREGS, sregs)

    def get_sregs2(self) -> abi.kvm_sregs2:
        """As `get_sregs`, with the page directory pointers of PAE (SREGS2)."""
        return self._get(Ioctl.KVM_GET_SREGS2, abi.kvm_sregs2())

    def set_sregs2(self, sregs: abi.kvm_sregs2) -> None:
        """As `set_sregs`, with the page directory pointers of PAE (SREGS2)."""
        ioctl(self._descriptor, Ioctl.KVM_SET_SREGS2, sregs)

    def get_fpu(self) -> abi.kvm_fpu:
        """The x87 and SSE registers; `get_xsave` has all."""
        return self._get(Ioctl.KVM_GET_FPU, abi.kvm_fpu())

    def set_fpu(self, fpu: abi.kvm_fpu) -> None:
        """Set the x87 and SSE registers."""
        ioctl(self._descriptor, Ioctl.KVM_SET_FPU, fpu)

    def get_xsave(self) -> bytearray:
        """The extended state, laid out as the host's XSAVE does."""
        state = bytearray(self._xsave_size)
        large = self._xsave_size > sizeof(abi.kvm_xsave)
        operation = Ioctl.KVM_GET_XSAVE2 if large else Ioctl.KVM_GET_XSAVE
        ioctl(self._descriptor, operation, state)
        return state

    def set_xsave(self, state: bytes | bytearray) -> None:
        """Set the extended state.

        Raises:
            ValueError: its size is not the size on this host.
        """
        if len(state) != self._xsave_size:
            raise ValueError(
                f"the XSAVE state has {counted(len(state), 'byte')}, and this host's has"
                f" {self._xsave_size}"
            )
        ioctl(self._descriptor, Ioctl.KVM_SET_XSAVE, bytearray(state))

    def get_xcrs(self) -> abi.kvm_xcrs:
        """The extended control registers."""
        return self._get(Ioctl.KVM_GET_XCRS, abi.kvm_xcrs())

    def set_xcrs(self, xcrs: abi.kvm_xcrs) -> None:
        """Set the extended control registers."""
        ioctl(self._descriptor, Ioctl.KVM_SET_XCRS, xcrs)

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """The values of the readable MSRs among these."""
        return read_msrs(self._descriptor, indices)

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set MSRs, in the order given; the error names the one that is refused."""
        write_msrs(self._descriptor, values)

    def get_cpuid2(self) -> list[abi.kvm_cpuid_entry2]:
        """The CPUID leaves that the guest was given."""
        leaves = Flexible.of(abi.kvm_cpuid2, abi.kvm_cpuid_entry2, _MAX_CPUID_ENTRIES)
        leaves.head.nent = _MAX_CPUID_ENTRIES
        ioctl(self._descriptor, Ioctl.KVM_GET_CPUID2, leaves.buffer)
        return leaves.entries[: leaves.head.nent]

    def set_cpuid2(self, entries: Sequence[abi.kvm_cpuid_entry2]) -> None:
        """Give the guest its CPUID leaves; before it runs first."""
        leaves = Flexible.of(abi.kvm_cpuid2, abi.kvm_cpuid_entry2, len(entries))
        leaves.head.nent = len(entries)
        for position, entry in enumerate(entries):
            leaves.entries[position] = entry
        ioctl(self._descriptor, Ioctl.KVM_SET_CPUID2, leaves.buffer)

    def get_lapic(self) -> abi.kvm_lapic_state:
        """The local APIC."""
        return self._get(Ioctl.KVM_GET_LAPIC, abi.kvm_lapic_state())

    def set_lapic(self, lapic: abi.kvm_lapic_state) -> None:
        """Set the local APIC."""
        ioctl(self._descriptor, Ioctl.KVM_SET_LAPIC, lapic)

    def get_mp_state(self) -> MpState:
        """Whether the vCPU runs, is halted, or waits to be started."""
        return MpState(self._get(Ioctl.KVM_GET_MP_STATE, abi.kvm_mp_state()).mp_state)

    def set_mp_state(self, state: MpState) -> None:
        """Make the vCPU run, halt, or wait to be started."""
        ioctl(self._descriptor, Ioctl.KVM_SET_MP_STATE, abi.kvm_mp_state(mp_state=state))

    def get_vcpu_events(self) -> abi.kvm_vcpu_events:
        """Pending exceptions, interrupts, NMIs and SMIs."""
        return self._get(Ioctl.KVM_GET_VCPU_EVENTS, abi.kvm_vcpu_events())

    def set_vcpu_events(self, events: abi.kvm_vcpu_events) -> None:
        """Set pending events; `flags` (`VcpuEventFlag`) says which fields are valid."""
        ioctl(self._descriptor, Ioctl.KVM_SET_VCPU_EVENTS, events)

    def get_debugregs(self) -> abi.kvm_debugregs:
        """The debug registers."""
        return self._get(Ioctl.KVM_GET_DEBUGREGS, abi.kvm_debugregs())

    def set_debugregs(self, debugregs: abi.kvm_debugregs) -> None:
        """Set the debug registers."""
        ioctl(self._descriptor, Ioctl.KVM_SET_DEBUGREGS, debugregs)

    def get_tsc_khz(self) -> int:
        """How fast the guest's time stamp counter runs, in kHz."""
        return ioctl(self._descriptor, Ioctl.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Set how fast the guest's time stamp counter runs, in kHz."""
        ioctl(self._descriptor, Ioctl.KVM_SET_TSC_KHZ, khz)

    # Operations on a vCPU

    def kvmclock_ctrl(self) -> None:
        """Tell the guest that it was paused, so that its watchdogs report no lockup.

        The kernel returns EINVAL if the guest does not use kvm-clock.
        """
        ioctl(self._descriptor, Ioctl.KVM_KVMCLOCK_CTRL)

    def translate(self, linear_address: int) -> abi.kvm_translation:
        """The physical address of a linear one, by the guest's page tables."""
        translation = abi.kvm_translation(linear_address=linear_address)
        return self._get(Ioctl.KVM_TRANSLATE, translation)

    def set_guest_debug(
        self, control: GuestDebug, debugreg: Mapping[int, int] | None = None
    ) -> None:
        """Stop the guest at breakpoints or steps; `debugreg` sets DR0 to DR3 and DR7."""
        request = abi.kvm_guest_debug(control=control)
        for index, value in (debugreg or {}).items():
            request.arch.debugreg[index] = value
        ioctl(self._descriptor, Ioctl.KVM_SET_GUEST_DEBUG, request)

    def nmi(self) -> None:
        """Send a non-maskable interrupt."""
        ioctl(self._descriptor, Ioctl.KVM_NMI)

    def interrupt(self, vector: int) -> None:
        """Queue an interrupt, where the kernel has no interrupt controller for this VM."""
        ioctl(self._descriptor, Ioctl.KVM_INTERRUPT, abi.kvm_interrupt(irq=vector))

    def set_signal_mask(self, signals: set[signal.Signals] | None) -> None:
        """The signals that are blocked while the guest runs; None for those of the thread."""
        if signals is None:
            ioctl(self._descriptor, Ioctl.KVM_SET_SIGNAL_MASK)
            return
        bits = sum(1 << (number - 1) for number in signals)
        mask = bytearray(abi.kvm_signal_mask(len=8)) + bytearray(bits.to_bytes(8, "little"))
        ioctl(self._descriptor, Ioctl.KVM_SET_SIGNAL_MASK, mask)

    def get_stats(self) -> Statistics:
        """The kernel's statistics of this vCPU."""
        return read_stats(self._descriptor)

    def count_exits(self) -> None:
        """Let `exit_count` be read while the vCPU runs; call it before that.

        Does nothing if the kernel has no statistics (before Linux 5.14).
        """
        with contextlib.suppress(KvmError):
            self._exits = Counter(self._descriptor, "exits")

    @property
    def exit_count(self) -> int | None:
        """How often it has left the guest, from any thread; None if that is not counted."""
        return None if self._exits is None else self._exits.read()

    def _get(self, operation: Ioctl, state: _State) -> _State:
        ioctl(self._descriptor, operation, state)
        return state

    # Exits

    def _exit(self) -> exits.Exit:
        reason: int = _REASON.unpack_from(self._view, _REASON_OFFSET)[0]
        decode = _DECODERS.get(reason)
        return exits.UnsupportedExit(reason) if decode is None else decode(self)

    def _io(self) -> exits.IoExit:
        direction, size, port, count, offset = _IO.unpack_from(self._view, _EXIT)
        data = self._view[offset : offset + size * count]
        return exits.IoExit(port, size, count, direction == abi.KVM_EXIT_IO_OUT, data)

    def _mmio(self) -> exits.MmioExit:
        address, length, is_write = _MMIO.unpack_from(self._view, _EXIT)
        data = self._view[_MMIO_DATA : _MMIO_DATA + length]
        return exits.MmioExit(address, is_write != 0, data)

    def _debug(self) -> exits.DebugExit:
        arch = self._run.exit.debug.arch
        return exits.DebugExit(arch.exception, arch.pc, arch.dr6, arch.dr7)

    def _fail_entry(self) -> exits.FailEntryExit:
        failure = self._run.exit.fail_entry
        return exits.FailEntryExit(failure.hardware_entry_failure_reason, failure.cpu)

    def _internal_error(self) -> exits.InternalErrorExit:
        internal = self._run.exit.internal
        data = tuple(internal.data[: internal.ndata])
        return exits.InternalErrorExit(internal.suberror, data, self._failed_instruction())

    def _failed_instruction(self) -> bytes:
        failure = self._run.exit.emulation_failure
        has_bytes = failure.flags & abi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        if failure.suberror != InternalError.EMULATION or failure.ndata < 3 or not has_bytes:
            return b""
        return bytes(failure.insn_bytes[: failure.insn_size])

    def _system_event(self) -> exits.SystemEventExit:
        event = self._run.exit.system_event
        return exits.SystemEventExit(event.type, tuple(event.data[: event.ndata]))

    def _msr_read(self) -> exits.MsrExit:
        msr = self._run.exit.msr
        return exits.MsrExit(msr.index, False, msr.reason, 0)

    def _msr_write(self) -> exits.MsrExit:
        msr = self._run.exit.msr
        return exits.MsrExit(msr.index, True, msr.reason, msr.data)


_DECODERS: dict[int, Callable[[Vcpu], exits.Exit]] = {
    ExitReason.IO: Vcpu._io,
    ExitReason.MMIO: Vcpu._mmio,
    ExitReason.HLT: lambda _: exits.HltExit(),
    ExitReason.SHUTDOWN: lambda _: exits.ShutdownExit(),
    ExitReason.INTR: lambda _: exits.InterruptedExit(),
    ExitReason.IRQ_WINDOW_OPEN: lambda _: exits.InterruptWindowExit(),
    ExitReason.DEBUG: Vcpu._debug,
    ExitReason.FAIL_ENTRY: Vcpu._fail_entry,
    ExitReason.INTERNAL_ERROR: Vcpu._internal_error,
    ExitReason.SYSTEM_EVENT: Vcpu._system_event,
    ExitReason.IOAPIC_EOI: lambda vcpu: exits.IoapicEoiExit(vcpu.kvm_run.exit.eoi.vector),
    ExitReason.X86_RDMSR: Vcpu._msr_read,
    ExitReason.X86_WRMSR: Vcpu._msr_write,
}
