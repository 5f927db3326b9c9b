"""A small encoder of AML, the bytecode of ACPI's definition blocks (ACPI 6.5, chapter 20).

Each function makes the bytes of one term; terms are joined with ``+`` or ``b"".join``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable


def name_string(path: str) -> bytes:
    r"""A NameString: segments of four characters joined by dots, ``\`` for the root."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [part.ljust(4, "_").encode() for part in path.removeprefix("\\").split(".")]
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"{path!r} is not an ACPI name")
    if len(segments) == 1:
        return root + segments[0]
    prefix = b"\x2e" if len(segments) == 2 else b"\x2f" + bytes([len(segments)])
    return root + prefix + b"".join(segments)


def package_length(body: int) -> bytes:
    """PkgLength of a body of so many bytes; it counts its own bytes too."""
    if body + 1 < 1 << 6:
        return bytes([body + 1])
    for extra in (1, 2, 3):
        total = body + 1 + extra
        if total < 1 << (4 + 8 * extra):
            low = extra << 6 | total & 0xF
            return bytes([low]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError("an ACPI package is too long")


def _sized(opcode: bytes, body: bytes) -> bytes:
    return opcode + package_length(len(body)) + body


def integer(value: int) -> bytes:
    """The shortest encoding of an integer."""
    if value in (0, 1):
        return bytes([value])
    for prefix, width in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * width:
            return bytes([prefix]) + value.to_bytes(width, "little")
    raise ValueError(f"{value:#x} does not fit into an ACPI integer")


def string(text: str) -> bytes:
    return b"\x0d" + text.encode("ascii") + b"\0"


def name(path: str, value: bytes) -> bytes:
    return b"\x08" + name_string(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x10", name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    return _sized(b"\x5b\x82", name_string(path) + b"".join(terms))


def method(path: str, *terms: bytes, arguments: int = 0, serialized: bool = False) -> bytes:
    flags = arguments | (0x08 if serialized else 0)
    return _sized(b"\x14", name_string(path) + bytes([flags]) + b"".join(terms))


def package(elements: Iterable[bytes]) -> bytes:
    items = list(elements)
    return _sized(b"\x12", bytes([len(items)]) + b"".join(items))


def buffer(data: bytes) -> bytes:
    return _sized(b"\x11", integer(len(data)) + data)


def eisa_id(text: str) -> bytes:
    """An EISA ID such as PNP0A08, as the integer that _HID holds (ACPI 6.5, 19.6.40)."""
    letters = [ord(character) - 0x40 for character in text[:3]]
    vendor = letters[0] << 10 | letters[1] << 5 | letters[2]
    value = struct.pack(">HH", vendor, int(text[3:], 16))
    return b"\x0c" + value


def operation_region(path: str, start: int, length: int) -> bytes:
    """An OperationRegion in system I/O space."""
    return b"\x5b\x80" + name_string(path) + b"\x01" + integer(start) + integer(length)


def byte_fields(region: str, *fields: str) -> bytes:
    """A Field of one-byte units, written through at once."""
    return _fields(region, _BYTE_ACCESS, 8, fields)


def dword_fields(region: str, *fields: str) -> bytes:
    """A Field of units of four bytes, written through at once."""
    return _fields(region, _DWORD_ACCESS, 32, fields)


def _fields(region: str, access: int, bits: int, fields: Iterable[str]) -> bytes:
    units = b"".join(name_string(field) + package_length_of_bits(bits) for field in fields)
    return _sized(b"\x5b\x81", name_string(region) + bytes([access]) + units)


def package_length_of_bits(bits: int) -> bytes:
    """The width of a field unit, in PkgLength's encoding (which here does not count itself)."""
    return bytes([bits]) if bits < 64 else bytes([0x40 | bits & 0xF, bits >> 4])


def store(value: bytes, target: bytes) -> bytes:
    return b"\x70" + value + target


def notify(target: str, value: int) -> bytes:
    return b"\x86" + name_string(target) + integer(value)


def bitwise_and(left: bytes, right: bytes) -> bytes:
    return b"\x7b" + left + right + b"\0"


def bitwise_or(left: bytes, right: bytes) -> bytes:
    return b"\x7d" + left + right + b"\0"


def shift_left(value: bytes, bits: int) -> bytes:
    return b"\x79" + value + integer(bits) + b"\0"


def equal(left: bytes, right: bytes) -> bytes:
    return b"\x93" + left + right


def less(left: bytes, right: bytes) -> bytes:
    return b"\x95" + left + right


def negated(value: bytes) -> bytes:
    return b"\x92" + value


def both(left: bytes, right: bytes) -> bytes:
    return b"\x90" + left + right


def returned(value: bytes) -> bytes:
    return b"\xa4" + value


def call(path: str, *arguments: bytes) -> bytes:
    """A call of a method, which the table has defined before."""
    return name_string(path) + b"".join(arguments)


def when(predicate: bytes, *terms: bytes) -> bytes:
    return _sized(b"\xa0", predicate + b"".join(terms))


LOCAL0, LOCAL1 = b"\x60", b"\x61"
ARGUMENT0, ARGUMENT1, ARGUMENT2 = b"\x68", b"\x69", b"\x6a"
_BYTE_ACCESS, _DWORD_ACCESS = 1, 3


def resources(*descriptors: bytes) -> bytes:
    """A resource template: its descriptors and an end tag whose checksum is not used."""
    return buffer(b"".join(descriptors) + b"\x79\0")


def io_ports(start: int, length: int) -> bytes:
    return struct.pack("<BBHHBB", 0x47, 1, start, start, 1, length)


def interrupt(gsi: int, *, level: bool = False) -> bytes:
    """An extended interrupt: consumed, active high, exclusive; edge-triggered unless `level`."""
    return struct.pack("<BHBBI", 0x89, 6, 0x01 if level else 0x03, 1, gsi)


def fixed_memory(start: int, length: int) -> bytes:
    return struct.pack("<BBHII", 0x86, 9, 0, 1, start)[:4] + struct.pack("<II", start, length)


def bus_numbers(first: int, last: int) -> bytes:
    return _word_space(2, 0, first, last)


def port_window(first: int, last: int) -> bytes:
    return _word_space(1, 3, first, last)


def memory_window(first: int, last: int) -> bytes:
    body = struct.pack("<BBBIIIII", 0, 0x0C, 1, 0, first, last, 0, last - first + 1)
    return b"\x87" + struct.pack("<H", len(body)) + body


def _word_space(kind: int, flags: int, first: int, last: int) -> bytes:
    body = struct.pack("<BBBHHHHH", kind, 0x0C, flags, 0, first, last, 0, last - first + 1)
    return b"\x88" + struct.pack("<H", len(body)) + body
