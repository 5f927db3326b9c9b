"""Workarounds for hosts whose KVM emulates a guest's kernel incompletely.

`cerne.host.probe` recognises such a host by measurement, and only this module handles it. The gaps
there, which this module fills:

- SYSCALL from ring 3 goes to its target with the code segment still that of ring 3, so that the
  first instruction faults. A hardware breakpoint at the page fault handler catches this fault, and
  completes the SYSCALL as in the AMD manual (volume 3).
- The emulator does not know int3, clac, stac and fwait, which cause emulation failures. - The
emulator does not know IRET in 32-bit protected mode; this module does it if it returns to the same
segment, from the place where the host's kernel puts an interrupt's frame. - The emulator never
finishes VMCALL, with which processors of a guest wake each other; this module hides the features
that use it. - The processor has some features that the emulator does not know; the kernel's command
line turns them off, and other features that make a boot slow there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from cerne.kvm.abi import GuestDebug, VcpuEventFlag, kvm_cpuid_entry2, kvm_regs
from cerne.kvm.exits import DebugExit, InternalErrorExit
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.linear import read_linear

COMMAND_LINE = (
    "acpi=off noxsave clearcpuid=308,297,580,141,151 no_timer_check random.trust_cpu=on "
    "no-kvmclock tsc=reliable tsc_early_khz={tsc_khz} highres=off pty.legacy_count=0 rodata=off "
    "noreplace-smp percpu_alloc=page "
    "GLIBC_TUNABLES=glibc.cpu.hwcaps="
    "-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-AVX_Fast_Unaligned_Load "
    "initcall_blacklist=slab_sysfs_init,param_sysfs_init,irq_sysfs_init,cacheinfo_sysfs_init,"
    "perf_event_sysfs_init,clockevents_init_sysfs,init_clocksource_sysfs,topology_init,"
    "topology_sysfs_init"
)
"""Additional parameters for a Linux guest (see `command_line`)."""

HINT = (
    "this host's KVM emulates guests' kernel code and lacks this instruction; "
    "--engine qemu runs the guest"
)
"""The hint if KVM stopped in spite of the workarounds."""

_LSTAR, _STAR, _SFMASK, _KERNEL_GS = 0xC000_0082, 0xC000_0081, 0xC000_0084, 0xC000_0102
# Documentation/virt/kvm/x86/cpuid.rst
_KVM_FEATURES = 0x4000_0001
_KICK, _SEND_IPI, _YIELD = 1 << 7, 1 << 11, 1 << 13
_PAGE_FAULT = 14
_BREAKPOINT = 3
_GATE_SIZE = 16
_BREAK_ON_EXECUTION = 0x1 | 0x700  # DR7: the first breakpoint, and bit 10 that is always one
_RESUME, _ALIGNMENT_CHECK = 1 << 16, 1 << 18
_ENDBR64, _SWAPGS = b"\xf3\x0f\x1e\xfa", b"\x0f\x01\xf8"
_IRET, _INT3, _FWAIT, _CLAC, _STAC = b"\xcf", b"\xcc", b"\x9b", b"\x0f\x01\xca", b"\x0f\x01\xcb"
_FRAME, _FRAME32 = struct.Struct("<6Q"), struct.Struct("<IH2xI")
_PROTECTED, _LONG_MODE_ACTIVE = 1 << 0, 1 << 10  # Bits of CR0 and of EFER.
_RFLAGS_OF_IRET, _RFLAGS_ALWAYS = 0x25_3FD7, 1 << 1  # neither a nested task nor virtual 8086 mode
_RING = 3
# Exits between two checks whether the guest has moved its handler.
_LOOK_EVERY = 64


def command_line(tsc_khz: int) -> str:
    """Additional parameters for a Linux guest with this frequency of its time stamp counter.

    Of the processor's features 308 is SMAP, 297 ERMS, 580 FSRM, 141 CX16, 151 POPCNT. Ticks of the
    kernel's timer take a fifth of its time there, and less if it reads the counter instead of the
    hypervisor's clock; zeroing large pages for its per-CPU data takes longer than mapping small
    ones. Each parameter takes a twentieth of a second.

    KVM does not hide AVX from programs there, and without XSAVE the kernel does not save its
    registers at a context switch, so a parameter tells the C library not to use them. Programs that
    use AVX directly may fail.
    """
    return COMMAND_LINE.format(tsc_khz=tsc_khz)


def without_hypercalls(leaves: Sequence[kvm_cpuid_entry2]) -> None:
    """Hide the features for which a guest uses VMCALL, at which the emulator hangs."""
    for leaf in leaves:
        if leaf.function == _KVM_FEATURES:
            leaf.eax &= ~(_KICK | _SEND_IPI | _YIELD)


class EmulationAssist:
    """The workarounds for one vCPU; belongs to its thread.

    `others` are those of all vCPUs of the machine. The running ones interrupt one that has not set
    its breakpoint yet, so that it checks: a vCPU may sleep from the kernel's start to its first
    user process.
    """

    def __init__(
        self, vcpu: Vcpu, memory: GuestMemory, others: Sequence[EmulationAssist] = ()
    ) -> None:
        self._others = others
        self._vcpu = vcpu
        self._memory = memory
        self._exits = 0
        self._handler = 0
        self._handler_length = 0
        self._entry = 0
        self._entry_length = 0

    def after_exit(self) -> None:
        """Check repeatedly where the guest's handlers are; called after every exit."""
        self._exits += 1
        if self._exits % _LOOK_EVERY == 0:
            self.look()
            for other in self._others:
                other.interrupt_if_needed()

    def look(self) -> None:
        """Check where the guest's handlers are; called on its thread, also when interrupted."""
        self._watch_page_faults()

    def interrupt_if_needed(self) -> None:
        """Make its thread check, if it has found no handler yet; from any thread."""
        if not self._handler:
            self._vcpu.kick()

    def take_failure(self, failure: InternalErrorExit) -> bool:
        """Do an instruction that the emulator does not know; return False for an unknown one."""
        code = failure.instruction
        regs = self._vcpu.get_regs()
        if code.startswith((_CLAC, _STAC)):
            regs.rip += len(_CLAC)
            if code.startswith(_STAC):
                regs.rflags |= _ALIGNMENT_CHECK
            else:
                regs.rflags &= ~_ALIGNMENT_CHECK
        elif code.startswith(_FWAIT):
            regs.rip += len(_FWAIT)
        elif code.startswith(_INT3):
            regs.rip += len(_INT3)
            self._inject_breakpoint()
        elif not (code.startswith(_IRET) and self._return_from_interrupt(regs)):
            return False
        self._vcpu.set_regs(regs)
        self._watch_page_faults()
        return True

    def take_debug(self, stop: DebugExit) -> bool:
        """At the page fault handler: complete a SYSCALL, or let the handler go on."""
        if stop.pc != self._handler:
            return False
        regs = self._vcpu.get_regs()
        frame = self._read(regs.rsp, _FRAME.size)
        _, rip, cs, rflags, rsp, _ = _FRAME.unpack(frame)
        if rip == self._entry and cs & _RING == _RING:
            self._complete_syscall(rflags, rsp)
        else:
            regs.rip += self._handler_length
            regs.rflags = regs.rflags & ~_ALIGNMENT_CHECK | (0 if self._handler_length else _RESUME)
            self._vcpu.set_regs(regs)
        return True

    def restored(self) -> None:
        """Set the breakpoint in a restored vCPU, because saved state does not contain it."""
        self._watch_page_faults()

    def _arm(self) -> None:
        if self._handler:
            debugreg = {0: self._handler, 7: _BREAK_ON_EXECUTION}
            self._vcpu.set_guest_debug(GuestDebug.ENABLE | GuestDebug.USE_HW_BP, debugreg)

    def _complete_syscall(self, rflags: int, rsp: int) -> None:
        msrs = self._vcpu.get_msrs([_STAR, _SFMASK, _KERNEL_GS])
        regs, sregs = self._vcpu.get_regs(), self._vcpu.get_sregs()
        regs.rsp = rsp
        regs.rflags = rflags & ~msrs[_SFMASK]
        # This does the handler's first instructions: endbr64 does nothing, swapgs does this.
        regs.rip = self._entry + self._entry_length
        user_gs, sregs.gs.base = sregs.gs.base, msrs[_KERNEL_GS]
        selector = (msrs[_STAR] >> 32 & 0xFFFF) + 8
        sregs.ss.selector, sregs.ss.base, sregs.ss.limit = selector, 0, 0xFFFF_FFFF
        sregs.ss.type, sregs.ss.s, sregs.ss.dpl, sregs.ss.present = 3, 1, 0, 1
        sregs.ss.g, sregs.ss.db, sregs.ss.l, sregs.ss.unusable = 1, 1, 0, 0
        self._vcpu.set_sregs(sregs)
        self._vcpu.set_regs(regs)
        self._vcpu.set_msrs({_KERNEL_GS: user_gs})

    def _return_from_interrupt(self, regs: kvm_regs) -> bool:
        """Do a 32-bit IRET (Intel SDM, volume 2) that changes no segment; False for any other."""
        sregs = self._vcpu.get_sregs()
        protected = sregs.cr0 & _PROTECTED and not sregs.efer & _LONG_MODE_ACTIVE
        if not (protected and sregs.cs.db and sregs.ss.db):
            return False
        stack = regs.rsp & 0xFFFF_FFFF
        # The host's kernel puts an interrupt's frame there and ignores the base of the stack's
        # segment.
        for address in {sregs.ss.base + stack, stack}:
            rip, selector, rflags = _FRAME32.unpack(self._read(address, _FRAME32.size))
            if selector == sregs.cs.selector and not rflags & ~_RFLAGS_OF_IRET:
                regs.rip, regs.rflags = rip, rflags | _RFLAGS_ALWAYS
                regs.rsp = stack + _FRAME32.size & 0xFFFF_FFFF
                return True
        return False

    def _inject_breakpoint(self) -> None:
        events = self._vcpu.get_vcpu_events()
        events.exception.injected = 1
        events.exception.nr = _BREAKPOINT
        events.exception.has_error_code = 0
        events.flags = VcpuEventFlag(0)
        self._vcpu.set_vcpu_events(events)

    def _watch_page_faults(self) -> None:
        """Set the breakpoint at the guest's page fault handler, when LSTAR is set."""
        entry = self._vcpu.get_msrs([_LSTAR])[_LSTAR]
        if not entry:
            return
        handler = self._handler_address()
        if not handler or (handler, entry) == (self._handler, self._entry):
            return
        self._handler, self._entry = handler, entry
        self._handler_length = _skipped(self._read(handler, 3))
        code = self._read(entry, len(_ENDBR64) + len(_SWAPGS))
        prefix = len(_ENDBR64) if code.startswith(_ENDBR64) else 0
        self._entry_length = prefix + len(_SWAPGS) if code[prefix:].startswith(_SWAPGS) else prefix
        self._arm()

    def _handler_address(self) -> int:
        table = self._vcpu.get_sregs().idt
        if table.limit < (_PAGE_FAULT + 1) * _GATE_SIZE - 1:
            return 0
        gate = self._read(table.base + _PAGE_FAULT * _GATE_SIZE, _GATE_SIZE)
        low, _, _, middle, high = struct.unpack("<HHHHI4x", gate)
        return int(low | middle << 16 | high << 32)

    def _read(self, linear: int, length: int) -> bytes:
        """Read guest memory through the guest's page tables; unmapped bytes are zeros."""
        return read_linear(self._vcpu, self._memory, linear, length).ljust(length, b"\0")


def _skipped(code: bytes) -> int:
    """How many bytes of the handler's first instruction to skip: a clac or a nop."""
    # Before the kernel patches itself for its processor, there are three short nops.
    return 3 if code in (_CLAC, b"\x0f\x1f\x00", b"\x90\x90\x90") else 0
