"""The tables of the Multiprocessor Specification 1.4, for kernels that are not told by ACPI.

Without them a kernel that has no ACPI scans memory for them, finds no I/O APIC, and routes PCI's
pins by guess. It also searches the BIOS area, byte by byte, for the PCI IRQ routing table of the
BIOSes before (PCI IRQ Routing Table Specification 1.0), to leave it aside: here it finds one soon.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from cerne.arch.x86 import layout
from cerne.errors import InputError
from cerne.kvm.memory import GuestAddress, GuestMemory

_APIC_VERSION = 0x14
_ISA_BUS, _PCI_BUS = 1, 0
_SPACE = 1 << 10
"""Bytes; what follows is not memory on a PC."""
_EDGE_HIGH, _LEVEL_LOW = 0, 0xF


class PciPin(NamedTuple):
    """How a pin of a PCI device reaches the I/O APIC."""

    device: int
    pin: int
    """0 for INTA to 3 for INTD."""
    gsi: int


def write_mp_table(
    memory: GuestMemory, cpus: int, cpu_signature: int, pins: Sequence[PciPin] = ()
) -> None:
    """Write the floating pointer and the configuration table into the last KiB of base memory.

    The PCI IRQ routing table has no routes.

    Raises:
        InputError: the table has no room for so many processors.
    """
    io_apic = cpus
    entries = [
        struct.pack(
            "<BBBBIIQ",
            0,
            index,
            _APIC_VERSION,
            0x3 if index == 0 else 0x1,
            cpu_signature,
            0x201,
            0,
        )
        for index in range(cpus)
    ]
    entries += [
        struct.pack("<BB6s", 1, _PCI_BUS, b"PCI   "),
        struct.pack("<BB6s", 1, _ISA_BUS, b"ISA   "),
        struct.pack("<BBBBI", 2, io_apic, 0x11, 1, layout.IOAPIC),
    ]
    entries += [
        # The PIT's interrupt reaches pin 2, where KVM's I/O APIC has it; the cascade has none.
        struct.pack("<BBHBBBB", 3, 0, _EDGE_HIGH, _ISA_BUS, irq, io_apic, irq or 2)
        for irq in range(16)
        if irq != 2
    ]
    entries += [
        struct.pack("<BBHBBBB", 3, 0, _LEVEL_LOW, _PCI_BUS, p.device << 2 | p.pin, io_apic, p.gsi)
        for p in pins
    ]
    entries += [
        struct.pack("<BBHBBBB", 4, 3, 0, _ISA_BUS, 0, 0xFF, 0),
        struct.pack("<BBHBBBB", 4, 1, 0, _ISA_BUS, 0, 0xFF, 1),
    ]
    body = b"".join(entries)
    table = layout.MP_TABLE + 16
    if 16 + 44 + len(body) > _SPACE:
        raise InputError(f"{cpus} processors are more than the machine's MP table describes")
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP",
        44 + len(body),
        4,
        0,
        b"CERNE   ",
        b"CERNE       ",
        0,
        0,
        len(entries),
        layout.LAPIC,
        0,
        0,
        0,
    )
    pointer = struct.pack("<4sIBBBBBBBB", b"_MP_", table, 1, 4, 0, 0, 0, 0, 0, 0)
    memory.write(layout.MP_TABLE, with_checksum(pointer, 10))
    memory.write(GuestAddress(table), with_checksum(header + body, 7))
    routes = struct.pack("<4sHH24x", b"$PIR", 0x0100, 32)
    memory.write(layout.PCI_ROUTING_TABLE, with_checksum(routes, 31))


def with_checksum(table: bytes, offset: int) -> bytes:
    """The table with the byte at `offset`, which is zero, set so that all bytes sum to zero."""
    return table[:offset] + bytes([-sum(table) & 0xFF]) + table[offset + 1 :]
