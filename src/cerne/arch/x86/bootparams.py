"""The data that a boot protocol passes to a kernel: the Linux zero page, and PVH's start info.

Documentation/arch/x86/{boot,zero-page}.rst of the Linux kernel, and
xen/include/public/arch-x86/hvm/start_info.h of Xen.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from cerne.arch.x86 import layout
from cerne.errors import InputError
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.units import counted

SETUP_HEADER = 0x1F1
"""Offset of the setup header in a bzImage and in the zero page."""
SETUP_HEADER_END = 0x290
_E820_MAX = 128


class MemoryKind(IntEnum):
    """E820 types."""

    RAM = 1
    RESERVED = 2


class MemoryMapEntry(NamedTuple):
    """One line of the E820 map."""

    address: int
    size: int
    kind: MemoryKind


class Initrd(NamedTuple):
    """The place of a loaded initial RAM disk."""

    address: GuestAddress
    size: int


def memory_map(memory_size: int) -> list[MemoryMapEntry]:
    """The E820 map of a machine with so many bytes of memory."""
    entries = [
        MemoryMapEntry(0, layout.LOW_END, MemoryKind.RAM),
        MemoryMapEntry(layout.LOW_END, layout.HIGH_START - layout.LOW_END, MemoryKind.RESERVED),
    ]
    for address, size in layout.memory_ranges(memory_size):
        start = max(address, layout.HIGH_START)
        entries.append(MemoryMapEntry(start, address + size - start, MemoryKind.RAM))
    entries.append(MemoryMapEntry(layout.ECAM_START, layout.ECAM_SIZE, MemoryKind.RESERVED))
    return entries


def write_command_line(memory: GuestMemory, command_line: str) -> None:
    """Write a kernel's command line at the address that both protocols use.

    Raises:
        InputError: it contains a NUL, or is longer than a kernel reads.
    """
    encoded = command_line.encode()
    if b"\0" in encoded:
        raise InputError("the kernel command line contains a NUL character")
    if len(encoded) > 2047:
        raise InputError(
            f"the kernel command line has {counted(len(encoded), 'byte')}; Linux on x86 reads 2047",
            hint="shorten it, or put settings into the initrd",
        )
    memory.write(layout.COMMAND_LINE, encoded + b"\0")


def write_zero_page(
    memory: GuestMemory,
    header: bytes,
    entries: list[MemoryMapEntry],
    initrd: Initrd | None,
    rsdp: GuestAddress | None,
) -> None:
    """Write the zero page around a kernel's setup header (or a made one, for an ELF kernel)."""
    page = bytearray(4096)
    page[SETUP_HEADER : SETUP_HEADER + len(header)] = header
    struct.pack_into("<B", page, 0x210, 0xFF)  # type_of_loader: not a registered one
    struct.pack_into("<I", page, 0x228, layout.COMMAND_LINE)
    if initrd is not None:
        struct.pack_into("<I", page, 0x218, initrd.address & 0xFFFF_FFFF)
        struct.pack_into("<I", page, 0x0C0, initrd.address >> 32)
        struct.pack_into("<I", page, 0x21C, initrd.size)
    if rsdp is not None:
        struct.pack_into("<Q", page, 0x070, rsdp)
    usable = entries[:_E820_MAX]
    struct.pack_into("<B", page, 0x1E8, len(usable))
    for index, entry in enumerate(usable):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * index, entry.address, entry.size, entry.kind)
    memory.write(layout.ZERO_PAGE, bytes(page))


def made_setup_header() -> bytes:
    """The smallest setup header that an ELF kernel accepts with the 64-bit protocol."""
    header = bytearray(SETUP_HEADER_END - SETUP_HEADER)
    struct.pack_into("<H", header, 0x1FE - SETUP_HEADER, 0xAA55)
    struct.pack_into("<4sH", header, 0x202 - SETUP_HEADER, b"HdrS", 0x020F)
    struct.pack_into("<B", header, 0x211 - SETUP_HEADER, 0x01)  # LOADED_HIGH
    struct.pack_into("<I", header, 0x22C - SETUP_HEADER, 0x7FFF_FFFF)
    return bytes(header)


def write_pvh_info(
    memory: GuestMemory,
    entries: list[MemoryMapEntry],
    initrd: Initrd | None,
    rsdp: GuestAddress | None,
) -> None:
    """Write PVH's start info, its module list and its memory map."""
    modules = layout.PVH_INFO + 56
    table = modules + 32
    info = struct.pack(
        "<4I4Q2I",
        0x336E_C578,
        1,
        0,
        0 if initrd is None else 1,
        modules,
        layout.COMMAND_LINE,
        rsdp or 0,
        table,
        len(entries),
        0,
    )
    module = struct.pack("<4Q", initrd.address, initrd.size, 0, 0) if initrd else bytes(32)
    lines = b"".join(struct.pack("<QQII", e.address, e.size, e.kind, 0) for e in entries)
    memory.write(layout.PVH_INFO, info + module + lines)
