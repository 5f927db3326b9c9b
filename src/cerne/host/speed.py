"""Measures the time in which two small guests count to a number, in ring 3 and in ring 0.

Each starts in 64-bit mode, with page tables that map its memory to itself (Intel SDM volume 3,
4.5.4), and stops by a write to an address without memory. The time is this thread's CPU time, so
that other work on the host does not count.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path

from cerne.errors import KvmError
from cerne.kvm.abi import Ioctl, kvm_regs, kvm_segment, kvm_sregs
from cerne.kvm.exits import MmioExit
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.kvm.vcpu import Vcpu

_MEMORY_SIZE = 2 << 20
_TABLES = 0x1000
_CODE = 0x8000
_DOORBELL = _MEMORY_SIZE
"""The first address past the memory: the page tables map it, and there is no memory."""

# dec rcx; jnz to it; mov [rdi], al
_COUNT_DOWN = bytes.fromhex("48ffc9 75fb 8807")
_INSTRUCTIONS = 2

_LONG_ENOUGH = 0.005
"""The least seconds of a measurement, so that the cost of entry and exit is small."""
_FIRST_COUNT = 1 << 10
_LAST_COUNT = 1 << 32

_PRESENT_WRITABLE_USER = 0x7
_LARGE_PAGE = 0x80
_EFER_LONG_MODE = 0x500
_CR4_PAE = 0x20
_CR0_PAGING_PROTECTED = 0x8000_0011
_RFLAGS_RESERVED = 0x2


def measure_ring(device: Path, ring: int) -> int:
    """Instructions a second of a guest in a ring, 0 or 3.

    Raises:
        KvmError: the device does not open, or does not run the guest.
    """
    ranges = [(GuestAddress(0), _MEMORY_SIZE)]
    with Kvm(device) as kvm, GuestMemory.anonymous(ranges) as memory, kvm.create_vm() as vm:
        vm.set_memory(memory)
        _load(memory)
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(kvm.get_supported_cpuid())
            vcpu.set_sregs(_long_mode(vcpu.get_sregs(), ring))
            return _measure(vcpu)


def _load(memory: GuestMemory) -> None:
    for level in range(2):
        table = _TABLES + 0x1000 * level
        memory.write_u64(table, table + 0x1000 | _PRESENT_WRITABLE_USER)
    directory = _TABLES + 0x2000
    for page in (0, _DOORBELL):
        entry = directory + 8 * (page // _MEMORY_SIZE)
        memory.write_u64(entry, page | _PRESENT_WRITABLE_USER | _LARGE_PAGE)
    memory.write(_CODE, _COUNT_DOWN)


def _long_mode(sregs: kvm_sregs, ring: int) -> kvm_sregs:
    sregs.cr3 = _TABLES
    sregs.cr4 |= _CR4_PAE
    sregs.cr0 |= _CR0_PAGING_PROTECTED
    sregs.efer |= _EFER_LONG_MODE
    # Linux's selectors of user code and data; some hosts recognise 64-bit user code by them.
    _flat(sregs.cs, 0x33 if ring else 0x10, 0xB, ring)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _flat(segment, 0x2B if ring else 0x18, 0x3, ring)
    sregs.cs.l = 1
    sregs.cs.db = 0
    return sregs


def _flat(segment: kvm_segment, selector: int, kind: int, ring: int) -> None:
    segment.base = 0
    segment.limit = 0xFFFF_FFFF
    segment.selector = selector
    segment.type = kind
    segment.present = 1
    segment.dpl = ring
    segment.db = 1
    segment.s = 1
    segment.g = 1
    segment.unusable = 0


def _measure(vcpu: Vcpu) -> int:
    count = _FIRST_COUNT
    _time(vcpu, count)
    while True:
        seconds = _time(vcpu, count)
        if seconds >= _LONG_ENOUGH or count >= _LAST_COUNT:
            return int(count * _INSTRUCTIONS / seconds)
        count *= 4


def _time(vcpu: Vcpu, count: int) -> float:
    vcpu.set_regs(kvm_regs(rip=_CODE, rcx=count, rdi=_DOORBELL, rflags=_RFLAGS_RESERVED))
    start = time.thread_time()
    stop = vcpu.run()
    seconds = time.thread_time() - start
    if not isinstance(stop, MmioExit):
        raise KvmError(
            Ioctl.KVM_RUN.name,
            errno.EIO,
            message=f"/dev/kvm does not run a guest of eight bytes: {stop}",
            hint="use the QEMU engine: --engine qemu",
        )
    vcpu.complete_exit()
    return seconds
