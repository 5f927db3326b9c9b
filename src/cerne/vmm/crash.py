"""Describes a crash of a guest: in one line, and with its registers, code and stack.

A triple fault counts as a crash and not as a reset, although a real processor resets: a kernel has
three better ways to ask for a reset, and a kernel that always faults would reset for ever without a
message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from cerne.errors import KvmError
from cerne.kvm.abi import ExitReason, InternalError, kvm_regs, kvm_segment, kvm_sregs
from cerne.kvm.exits import (
    Exit,
    FailEntryExit,
    InternalErrorExit,
    ShutdownExit,
    UnsupportedExit,
)
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vcpu import Vcpu
from cerne.vmm.linear import read_linear

_GENERAL = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
    ("rip", "rflags"),
)
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt")
_BEFORE, _AFTER = 16, 32
_STACK = 64
_WORD = struct.Struct("<Q")
_LONG_MODE_ACTIVE = 1 << 10
_PROTECTION, _PAGING = 1, 1 << 31

_INTERNAL = {
    InternalError.EMULATION: (
        "KVM failed to emulate an instruction",
        "KVM does not know the instruction, or the guest jumped to an address without code",
    ),
    InternalError.SIMUL_EX: (
        "the guest raised exceptions that KVM does not combine",
        "the guest's exception handlers fault themselves",
    ),
    InternalError.DELIVERY_EV: (
        "KVM failed to deliver an interrupt or exception",
        "the guest's interrupt table or stack is at an address without memory",
    ),
    InternalError.UNEXPECTED_EXIT_REASON: (
        "the processor left the guest for a reason that this host's KVM does not know",
        "a newer kernel on the host may know the reason",
    ),
}
# Basic exit reasons of failed entries (Intel SDM, volume 3, appendix C), with bit 31 set; AMD's
# processors have one number for all (VMEXIT_INVALID).
_ENTRY_FAILED = 1 << 31
_ENTRIES = {
    33: "the processor does not accept the guest's state",
    34: "the processor refuses to load a model-specific register",
    41: "a machine check came: the host's hardware is at fault",
}
_INVALID = ((1 << 64) - 1, (1 << 32) - 1)


class Crash(NamedTuple):
    """The reason why a vCPU stopped for ever."""

    reason: str
    """One line for people."""
    report: str = ""
    """Lines with details: registers, code and stack."""


def describe(index: int, vcpu: Vcpu, memory: GuestMemory, exit_: Exit, hint: str = "") -> Crash:
    """Describe a vCPU whose last exit ends its machine; on the vCPU's thread.

    `hint` replaces the likely reason on most hosts.
    """
    what, likely = _words(exit_)
    lines = [f"the guest crashed on vCPU {index}: {what}"]
    if hint or likely:
        lines.append(f"  likely: {hint or likely}")
    if isinstance(exit_, InternalErrorExit):
        lines += _internal(exit_)
    place = ""
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
        place = f" at {regs.rip:#x}, {_mode(sregs)}"
        lines += _registers(regs, sregs)
        lines += _memory(vcpu, memory, regs, sregs)
    except KvmError as error:
        lines.append(f"  reading its registers failed: {error.message}")
    return Crash(f"{what} on vCPU {index}{place}", "\n".join(lines))


def _words(exit_: Exit) -> tuple[str, str]:
    """What has happened, and its usual reason."""
    match exit_:
        case ShutdownExit():
            return "a triple fault", (
                "an exception came while the guest had no handler that works; "
                "a kernel told to reboot so (reboot=t) does it deliberately"
            )
        case InternalErrorExit(suberror):
            known = (f"KVM stopped (internal error {suberror})", "")
            return _INTERNAL.get(InternalError(suberror), known) if _is(suberror) else known
        case FailEntryExit(reason):
            return f"the processor refused to enter the guest ({reason:#x})", _entry(reason)
        case UnsupportedExit(reason):
            return f"an unhandled exit ({_exit_name(reason)})", ""
        case _:
            return f"an unhandled exit ({exit_})", ""


def _is(suberror: int) -> bool:
    return suberror in InternalError._value2member_map_


def _entry(reason: int) -> str:
    if reason in _INVALID:
        return _ENTRIES[33]
    if reason & _ENTRY_FAILED:
        return _ENTRIES.get(reason & 0xFFFF, "")
    return "the host's KVM, or the hypervisor under it, has set the processor up wrongly"


def _exit_name(reason: int) -> str:
    try:
        return ExitReason(reason).name
    except ValueError:
        return str(reason)


def _internal(exit_: InternalErrorExit) -> Iterator[str]:
    if exit_.instruction:
        yield f"  instruction: {exit_.instruction.hex(' ')}"
    if exit_.data:
        yield f"  data: {' '.join(f'{each:#x}' for each in exit_.data)}"


def _mode(sregs: kvm_sregs) -> str:
    ring = sregs.cs.selector & 3 if sregs.cr0 & _PROTECTION else 0
    if sregs.efer & _LONG_MODE_ACTIVE and sregs.cs.l:
        return f"64-bit code in ring {ring}"
    if not sregs.cr0 & _PROTECTION:
        return "real mode"
    return f"{32 if sregs.cs.db else 16}-bit code in ring {ring}"


def _registers(regs: kvm_regs, sregs: kvm_sregs) -> Iterator[str]:
    for row in _GENERAL:
        yield "  " + " ".join(f"{name}={getattr(regs, name):#x}" for name in row)
    yield "  " + " ".join(f"{name}={getattr(sregs, name):#x}" for name in _CONTROL)
    for name in _SEGMENTS:
        segment: kvm_segment = getattr(sregs, name)
        yield (
            f"  {name}={segment.selector:#x} base={segment.base:#x} limit={segment.limit:#x} "
            f"type={segment.type:#x} dpl={segment.dpl} present={segment.present}"
        )
    tables = (("gdt", sregs.gdt), ("idt", sregs.idt))
    yield "  " + " ".join(f"{name}={table.base:#x}/{table.limit:#x}" for name, table in tables)


def _memory(vcpu: Vcpu, memory: GuestMemory, regs: kvm_regs, sregs: kvm_sregs) -> Iterator[str]:
    here = _linear(sregs.cs, regs.rip, sregs)
    code = read_linear(vcpu, memory, here, _AFTER)
    if not code:
        yield "  code: there is no memory at rip"
    else:
        before = read_linear(vcpu, memory, here - _BEFORE, _BEFORE) if here >= _BEFORE else b""
        # Bytes before rip may be on a missing page.
        before = before if len(before) == _BEFORE else b""
        yield f"  code: {before.hex(' ')} <{code[0]:02x}> {code[1:].hex(' ')}".replace(":  ", ": ")
    stack = read_linear(vcpu, memory, _linear(sregs.ss, regs.rsp, sregs), _STACK)
    words = [f"{word:#x}" for (word,) in _WORD.iter_unpack(stack[: len(stack) // 8 * 8])]
    yield f"  stack: {' '.join(words) or 'there is no memory at rsp'}"


def _linear(segment: kvm_segment, offset: int, sregs: kvm_sregs) -> int:
    """The linear address of an offset in a segment; 64-bit code has only the flat segment."""
    if sregs.efer & _LONG_MODE_ACTIVE and sregs.cs.l:
        return offset
    return segment.base + offset & 0xFFFF_FFFF
