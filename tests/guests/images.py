"""Files in the formats of kernels, of what code they are given."""

from __future__ import annotations

import struct

from cerne.units import MIB

_SETUP_SECTORS = 1


def elf(segments: list[tuple[int, int, bytes]], entry: int, note: bytes = b"") -> bytes:
    """An ELF file of (physical address, size in memory, content) segments, and a note."""
    headers, body = b"", b""
    count = len(segments) + bool(note)
    start = 64 + 56 * count
    for address, size, content in segments:
        offset = start + len(body)
        headers += struct.pack("<IIQQQQQQ", 1, 7, offset, 0, address, len(content), size, 4096)
        body += content
    if note:
        offset = start + len(body)
        headers += struct.pack("<IIQQQQQQ", 4, 4, offset, 0, 0, len(note), len(note), 4)
        body += note
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, entry, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + headers + body


def pvh_note(entry: int) -> bytes:
    """The note that names an ELF file's entry by PVH."""
    return struct.pack("<III4sI", 4, 4, 18, b"Xen\0", entry)


def bzimage(
    code: bytes,
    *,
    long_mode: bool = True,
    version: int = 0x20F,
    address: int = MIB,
    needed: int = MIB,
) -> bytes:
    """A bzImage whose protected-mode part is `code`; in long mode it is entered at 0x200."""
    head = bytearray(512 * (1 + _SETUP_SECTORS))
    head[0x1F1] = _SETUP_SECTORS
    struct.pack_into("<HH4sH", head, 0x1FE, 0xAA55, 0x66EB, b"HdrS", version)
    head[0x211] = 1  # LOADED_HIGH
    struct.pack_into("<I", head, 0x22C, 0x7FFF_FFFF)
    struct.pack_into("<IBBH", head, 0x230, 4096, 0, 0, int(long_mode))
    struct.pack_into("<QI", head, 0x258, address, needed)
    return bytes(head) + code
