"""The state in which the first vCPU enters a kernel.

Linux's 64-bit protocol: long mode, the first 4 GiB mapped one to one, flat segments with the
selectors __BOOT_CS (0x10) and __BOOT_DS (0x18), interrupts off, RSI at the zero page. Its 32-bit
protocol: the same without paging, in 32-bit protected mode. PVH: like that, but EBX at the start
info.
"""

from __future__ import annotations

import struct

from cerne.arch.x86 import layout
from cerne.arch.x86.kernel import LoadedKernel, Protocol
from cerne.kvm.abi import kvm_regs, kvm_segment, kvm_sregs
from cerne.kvm.memory import GuestAddress, GuestMemory

_CR0_PE, _CR0_ET, _CR0_PG = 1 << 0, 1 << 4, 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME, _EFER_LMA = 1 << 8, 1 << 10
_RFLAGS_RESERVED = 1 << 1
_PRESENT_WRITABLE = 0x3
_LARGE_PAGE = 0x80
_CODE, _DATA, _BUSY_TSS = 0xB, 0x3, 0xB
_BOOT_CS, _BOOT_DS, _BOOT_TSS = 0x10, 0x18, 0x20
# Flat descriptors, as the Intel SDM, volume 3, 3.4.5 lays them out.
_GDT_CODE64 = 0x00AF_9B00_0000_FFFF
_GDT_CODE32 = 0x00CF_9B00_0000_FFFF
_GDT_DATA = 0x00CF_9300_0000_FFFF
_GDT_TSS = 0x0000_8B00_0000_0067


def write_page_tables(memory: GuestMemory) -> GuestAddress:
    """Map the first 4 GiB one to one with 2 MiB pages; return the address for CR3."""
    root = layout.PAGE_TABLES
    pointers = root + 0x1000
    directories = root + 0x2000
    memory.write(root, struct.pack("<Q", pointers | _PRESENT_WRITABLE))
    memory.write(
        GuestAddress(pointers),
        struct.pack("<4Q", *(directories + 0x1000 * i | _PRESENT_WRITABLE for i in range(4))),
    )
    pages = (i << 21 | _PRESENT_WRITABLE | _LARGE_PAGE for i in range(2048))
    memory.write(GuestAddress(directories), struct.pack("<2048Q", *pages))
    return root


def set_entry(memory: GuestMemory, kernel: LoadedKernel, sregs: kvm_sregs, regs: kvm_regs) -> None:
    """Change the first vCPU's reset state to the state in which it enters this kernel."""
    long_mode = kernel.protocol is Protocol.LINUX64
    descriptors = (0, 0, _GDT_CODE64 if long_mode else _GDT_CODE32, _GDT_DATA, _GDT_TSS)
    memory.write(layout.GDT, struct.pack("<5Q", *descriptors))
    sregs.gdt.base, sregs.gdt.limit = layout.GDT, 8 * len(descriptors) - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    _flat(sregs.cs, _BOOT_CS, _CODE, long_mode=long_mode)
    for segment in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _flat(segment, _BOOT_DS, _DATA, long_mode=False)
    _flat(sregs.tr, _BOOT_TSS, _BUSY_TSS, long_mode=False)
    sregs.tr.s, sregs.tr.g, sregs.tr.db, sregs.tr.limit = 0, 0, 0, 0x67
    sregs.cr0 = _CR0_PE | _CR0_ET
    if long_mode:
        sregs.cr3 = write_page_tables(memory)
        sregs.cr4 = _CR4_PAE
        sregs.cr0 |= _CR0_PG
        sregs.efer = _EFER_LME | _EFER_LMA
    regs.rflags = _RFLAGS_RESERVED
    regs.rip = kernel.entry
    regs.rsp = layout.BOOT_STACK
    pvh = kernel.protocol is Protocol.PVH
    regs.rsi = 0 if pvh else layout.ZERO_PAGE
    regs.rbx = layout.PVH_INFO if pvh else 0


def _flat(segment: kvm_segment, selector: int, kind: int, *, long_mode: bool) -> None:
    segment.base, segment.limit, segment.selector, segment.type = 0, 0xFFFF_FFFF, selector, kind
    segment.present, segment.dpl, segment.s, segment.g, segment.avl = 1, 0, 1, 1, 0
    segment.l, segment.db, segment.unusable = int(long_mode), int(not long_mode), 0
