"""Loading a kernel and its initrd: bzImage by Linux's boot protocol, ELF by the same or by PVH.

Documentation/arch/x86/boot.rst of the Linux kernel and the System V ABI's ELF-64. The files are
hostile: every offset, length and address is checked before it is used, and a wrong one raises an
`ImageError`.
"""

from __future__ import annotations

import os
import struct
from enum import Enum
from typing import NamedTuple

from cerne.arch.x86 import layout
from cerne.arch.x86.bootparams import SETUP_HEADER, SETUP_HEADER_END, Initrd, made_setup_header
from cerne.errors import ImageError
from cerne.kvm.memory import GuestAddress, GuestMemory, GuestMemoryError
from cerne.units import counted

_PAGE = 4096
_PT_LOAD = 1
_PT_NOTE = 4
_XEN_ELFNOTE_PHYS32_ENTRY = 18
# Of the boot protocol: versions, and bits of its loadflags and xloadflags.
_FIRST_WITH_PLACE, _FIRST_WITH_XLF = 0x020A, 0x020C
_LOADED_HIGH = 1
_XLF_KERNEL_64 = 1
_ENTRY64 = 0x200
_MAX_SEGMENTS = 64
_MAX_NOTES = 64 * 1024


class Protocol(Enum):
    """How a loaded kernel is entered."""

    LINUX64 = "linux64"
    """In long mode, RSI at the zero page."""
    LINUX32 = "linux32"
    """In 32-bit protected mode without paging, ESI at the zero page."""
    PVH = "pvh"
    """In 32-bit protected mode without paging, EBX at the start info."""


class LoadedKernel(NamedTuple):
    """A kernel in guest memory, ready for its start."""

    protocol: Protocol
    entry: GuestAddress
    end: int
    """The first address after the kernel (with its BSS and its decompressor's space)."""
    setup_header: bytes
    """The setup header for the zero page: a bzImage's own, or a made one for an ELF file."""
    initrd_limit: int
    """The highest address that the initrd's last byte may have."""


def load_kernel(memory: GuestMemory, descriptor: int) -> LoadedKernel:
    """Load the kernel in an open file into zeroed guest memory.

    Raises:
        ImageError: it is neither a bzImage nor an ELF kernel for x86-64, or it does not fit.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, _PAGE, 0)
    if head[:4] == b"\x7fELF":
        return _load_elf(memory, descriptor, head, size)
    if head[0x202:0x206] == b"HdrS":
        return _load_bzimage(memory, descriptor, head, size)
    raise ImageError(
        "the kernel is neither a bzImage nor an ELF file",
        hint="give the file that Linux's build calls bzImage or vmlinux",
    )


def load_initrd(memory: GuestMemory, descriptor: int, kernel: LoadedKernel) -> Initrd:
    """Load an initrd as high as the kernel allows.

    Raises:
        ImageError: there is no room for it above the kernel.
    """
    size = os.fstat(descriptor).st_size
    low_memory = min(region.size for region in memory.regions[:1])
    top = min(low_memory, kernel.initrd_limit + 1)
    address = (top - size) & ~(_PAGE - 1)
    if address < kernel.end or size == 0:
        raise ImageError(
            f"an initrd of {counted(size, 'byte')} does not fit into the memory above the kernel",
            hint="give the machine more memory",
        )
    _read_into(memory, descriptor, 0, GuestAddress(address), size)
    return Initrd(GuestAddress(address), size)


def _load_bzimage(memory: GuestMemory, descriptor: int, head: bytes, size: int) -> LoadedKernel:
    if len(head) < SETUP_HEADER_END:
        raise ImageError("the bzImage is truncated in its header")
    version = _u16(head, 0x206)
    if version < _FIRST_WITH_PLACE or not head[0x211] & _LOADED_HIGH:
        raise ImageError(
            "the bzImage does not name its load address, and only a BIOS can start it",
            hint="use a kernel of Linux 2.6.31 or later",
        )
    long_mode = version >= _FIRST_WITH_XLF and _u16(head, 0x236) & _XLF_KERNEL_64
    setup_size = ((head[0x1F1] or 4) + 1) * 512
    if size <= setup_size:
        raise ImageError("the bzImage is truncated after its setup code")
    alignment = _u32(head, 0x230) or _PAGE
    preferred = _u64(head, 0x258)
    needed = _u32(head, 0x260)
    address = max(preferred, layout.HIGH_START)
    if preferred % alignment or needed < size - setup_size:
        raise ImageError("the bzImage's header contradicts itself about its load address")
    _require_room(memory, address, needed)
    _read_into(memory, descriptor, setup_size, GuestAddress(address), size - setup_size)
    header_end = min(0x202 + head[0x201], SETUP_HEADER_END)
    return LoadedKernel(
        protocol=Protocol.LINUX64 if long_mode else Protocol.LINUX32,
        entry=GuestAddress(address + (_ENTRY64 if long_mode else 0)),
        end=address + needed,
        setup_header=head[SETUP_HEADER:header_end],
        initrd_limit=_u32(head, 0x22C),
    )


def _load_elf(memory: GuestMemory, descriptor: int, head: bytes, size: int) -> LoadedKernel:
    if len(head) < 64 or head[4:6] != b"\x02\x01" or _u16(head, 0x12) != 62:
        raise ImageError("the ELF file is not for x86-64", hint="give a 64-bit kernel")
    entry, table = _u64(head, 0x18), _u64(head, 0x20)
    entry_size, count = _u16(head, 0x36), _u16(head, 0x38)
    if entry_size != 56 or not 0 < count <= _MAX_SEGMENTS or table + 56 * count > size:
        raise ImageError("the ELF file's program headers are damaged")
    headers = os.pread(descriptor, 56 * count, table)
    end = 0
    pvh: int | None = None
    for fields in struct.iter_unpack("<IIQQQQQQ", headers):
        kind, _, offset, _, physical, file_size, memory_size, _ = fields
        if kind == _PT_NOTE:
            pvh = _pvh_entry(descriptor, offset, file_size, size) or pvh
        if kind != _PT_LOAD or memory_size == 0:
            continue
        if offset + file_size > size or file_size > memory_size:
            raise ImageError("a segment of the ELF file is outside of the file")
        _require_room(memory, physical, memory_size)
        _read_into(memory, descriptor, offset, GuestAddress(physical), file_size)
        end = max(end, physical + memory_size)
    if not end:
        raise ImageError("the ELF file has no segment to load")
    # A Linux kernel that has both is entered in long mode, which is the shorter way.
    linux = pvh is None or _is_linux_entry(entry, end)
    chosen = entry if linux or pvh is None else pvh
    if not layout.HIGH_START <= chosen < end:
        raise ImageError("the ELF file's entry is outside of its segments")
    return LoadedKernel(
        protocol=Protocol.LINUX64 if linux else Protocol.PVH,
        entry=GuestAddress(chosen),
        end=end,
        setup_header=made_setup_header(),
        initrd_limit=layout.HOLE_START - 1,
    )


def _is_linux_entry(entry: int, end: int) -> bool:
    return layout.HIGH_START <= entry < end


def _pvh_entry(descriptor: int, offset: int, length: int, size: int) -> int | None:
    """The entry in a note of Xen, or None if there is no such note."""
    if offset + length > size or length > _MAX_NOTES:
        raise ImageError("the notes of the ELF file are outside of the file, or too long")
    notes = os.pread(descriptor, length, offset)
    position = 0
    while position + 12 <= len(notes):
        name_size, value_size, kind = struct.unpack_from("<III", notes, position)
        name_start = position + 12
        value_start = name_start + (name_size + 3 & ~3)
        position = value_start + (value_size + 3 & ~3)
        value = notes[value_start : value_start + value_size]
        name = notes[name_start : name_start + name_size]
        if name == b"Xen\0" and kind == _XEN_ELFNOTE_PHYS32_ENTRY and len(value) >= 4:
            return _u32(value, 0)
    return None


def _require_room(memory: GuestMemory, address: int, length: int) -> None:
    if address < layout.HIGH_START or address + length > layout.HOLE_START:
        raise ImageError(
            f"the kernel needs {counted(length, 'byte')} at {address:#x}, where a machine has"
            " no memory"
        )
    try:
        memory.view(GuestAddress(address), length).release()
    except GuestMemoryError as error:
        raise ImageError(
            f"the kernel needs memory up to {address + length:#x}, which the machine lacks",
            hint="give the machine more memory",
        ) from error


def _read_into(
    memory: GuestMemory, descriptor: int, offset: int, address: GuestAddress, length: int
) -> None:
    """Read a part of a file straight into guest memory."""
    if length == 0:
        return
    done = 0
    with memory.view(address, length) as view:
        while done < length:
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                raise ImageError("the file ended while it was loaded")
            done += count


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")
