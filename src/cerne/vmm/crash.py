"""What a guest was doing when it could go no further: for the log, in words and registers."""

from __future__ import annotations

from cerne.errors import KvmError
from cerne.kvm.vcpu import Vcpu

_GENERAL = ("rip", "rsp", "rflags", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp")
_CONTROL = ("cr0", "cr2", "cr3", "cr4", "efer")


def describe(vcpu: Vcpu, what: str, instruction: bytes = b"") -> str:
    """The reason, with the registers and the instruction's bytes where they are known."""
    parts = [what]
    if instruction:
        parts.append(f"instruction {instruction.hex(' ')}")
    try:
        regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    except KvmError:
        return parts[0]
    names = [*_GENERAL, *(f"r{number}" for number in range(8, 16))]
    parts += [f"{name}={getattr(regs, name):#x}" for name in names]
    parts += [f"{name}={getattr(sregs, name):#x}" for name in _CONTROL]
    parts += [f"cs={sregs.cs.selector:#x} ss={sregs.ss.selector:#x}"]
    return " ".join(parts)
