"""Reads guest memory at linear addresses, through a vCPU's page tables (KVM_TRANSLATE)."""

from __future__ import annotations

from cerne.kvm.memory import PAGE_SIZE, GuestMemory
from cerne.kvm.vcpu import Vcpu

_ALL_ONES = (1 << 64) - 1


def read_linear(vcpu: Vcpu, memory: GuestMemory, address: int, length: int) -> bytes:
    """The bytes from a linear address on, up to missing memory; the vCPU must not run.

    Raises:
        KvmError: the kernel does not translate.
    """
    data = b""
    while len(data) < length:
        linear = address + len(data) & _ALL_ONES
        part = min(length - len(data), PAGE_SIZE - linear % PAGE_SIZE)
        found = vcpu.translate(linear)
        if not found.valid or found.physical_address not in memory:
            break
        data += memory.read(found.physical_address, part)
    return data
