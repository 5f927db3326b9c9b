"""The ACPI tables of a machine: hardware-reduced ACPI (ACPI 6.5, chapters 4 and 5).

RSDP, XSDT, FADT, MADT, MCFG and a DSDT with a PCI root, slots for removable devices, the serial
port, a power button through a generic event device, S5, and Microsoft's VM generation ID.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cerne.arch.x86 import layout
from cerne.arch.x86.acpi import aml
from cerne.arch.x86.mptable import with_checksum
from cerne.errors import InputError
from cerne.kvm.memory import GuestAddress, GuestMemory

_OEM = (b"CERNE ", b"CERNEVM ", 1, b"CRNE", 1)
_HARDWARE_REDUCED, _RESET_SUPPORTED, _WBINVD = 1 << 20, 1 << 10, 1
_NO_VGA, _NO_CMOS = 1 << 2, 1 << 5
_SPACE = layout.GENERATION_ID - layout.ACPI_TABLES

SLEEP_CONTROL, SLEEP_STATUS, RESET, EVENTS = range(4)
"""Offsets of the one-byte registers from `layout.POWER_PORT`."""
SLEEP_TYPE_OFF = 5
SLEEP_ENABLE = 1 << 5
RESET_VALUE = 1
EVENT_POWER_BUTTON = 1
EVENT_GENERATION = 2
EVENT_PCI = 4
EVENT_CPUS = 8

_ENABLED, _ONLINE_CAPABLE = 1, 2
_FIRST_X2APIC = 255
_WORKS = 0xF
"""_STA of a device that is present, enabled, shown and works."""
_DEVICE_CHECK, _EJECT_REQUEST = 1, 3
_HOTPLUG_REGISTERS = 16
_CPU_REGISTERS = 8


class PciIrq(NamedTuple):
    """The interrupt line that a device's pin raises."""

    device: int
    pin: int
    gsi: int


class Table(NamedTuple):
    """One table, and its address in guest memory."""

    signature: bytes
    address: GuestAddress
    content: bytes


def write_tables(
    memory: GuestMemory, cpus: int, irqs: tuple[PciIrq, ...] = (), most: int = 0
) -> GuestAddress:
    """Write all tables; return the address of the RSDP."""
    for table in build_tables(cpus, irqs, most):
        memory.write(table.address, table.content)
    return layout.ACPI_TABLES


def build_tables(cpus: int, irqs: tuple[PciIrq, ...] = (), most: int = 0) -> list[Table]:
    """All tables with their addresses; the RSDP first.

    With `most` further processors may come, up to so many altogether.

    Raises:
        InputError: the tables have no room for so many processors.
    """
    tables: list[Table] = []
    position = layout.ACPI_TABLES + 64

    def place(signature: bytes, content: bytes) -> int:
        nonlocal position
        table = Table(signature, GuestAddress(position), content)
        tables.append(table)
        position = position + len(content) + 15 & ~15
        return table.address

    dsdt = place(b"DSDT", _dsdt(irqs, most))
    listed = [
        place(b"FACP", _fadt(dsdt)),
        place(b"APIC", _madt(cpus, most)),
        place(b"MCFG", _mcfg()),
    ]
    xsdt = place(b"XSDT", _table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    if position > layout.ACPI_TABLES + _SPACE:
        raise InputError(
            f"{max(cpus, most)} processors are more than the machine's ACPI tables describe"
        )
    return [Table(b"RSD PTR ", layout.ACPI_TABLES, _rsdp(xsdt)), *tables]


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    header = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, *_OEM)
    return with_checksum(header + body, 9)


def _rsdp(xsdt: int) -> bytes:
    head = with_checksum(struct.pack("<8sB6sBI", b"RSD PTR ", 0, _OEM[0], 2, 0), 8)
    return with_checksum(head + struct.pack("<IQB3x", 36, xsdt, 0), 32)


def _register(port: int) -> bytes:
    """A generic address structure: one byte in system I/O space."""
    return struct.pack("<BBBBQ", 1, 8, 0, 1, port)


def _fadt(dsdt: int) -> bytes:
    body = bytearray(276 - 36)

    def put(offset: int, content: bytes) -> None:
        body[offset - 36 : offset - 36 + len(content)] = content

    put(109, struct.pack("<H", _NO_VGA | _NO_CMOS))
    put(112, struct.pack("<I", _HARDWARE_REDUCED | _RESET_SUPPORTED | _WBINVD))
    put(116, _register(layout.POWER_PORT + RESET))
    put(128, bytes([RESET_VALUE]))
    put(131, bytes([5]))
    put(140, struct.pack("<Q", dsdt))
    put(244, _register(layout.POWER_PORT + SLEEP_CONTROL))
    put(256, _register(layout.POWER_PORT + SLEEP_STATUS))
    put(268, b"CERNE   ")
    return _table(b"FACP", 6, bytes(body))


def _madt(cpus: int, most: int) -> bytes:
    body = struct.pack("<II", layout.LAPIC, 0)
    for index in range(max(cpus, most)):
        body += _processor_entry(index, _ENABLED if index < cpus else _ONLINE_CAPABLE)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, 0, 2, 0)
    return _table(b"APIC", 5, body)


def _processor_entry(index: int, flags: int) -> bytes:
    """A local APIC, or a local x2APIC (ACPI 6.5, 5.2.12.2 and 5.2.12.12)."""
    if index < _FIRST_X2APIC:
        return struct.pack("<BBBBI", 0, 8, index, index, flags)
    return struct.pack("<BBHIII", 9, 16, 0, index, flags, index)


def _mcfg() -> bytes:
    body = struct.pack("<8xQHBB4x", layout.ECAM_START, 0, 0, layout.ECAM_BUSES - 1)
    return _table(b"MCFG", 1, body)


def _dsdt(irqs: tuple[PciIrq, ...], most: int) -> bytes:
    system = aml.scope(
        "\\_SB",
        _pci_root(irqs),
        aml.device(
            "COM1",
            aml.name("_HID", aml.eisa_id("PNP0501")),
            aml.name("_UID", aml.integer(1)),
            aml.name(
                "_CRS",
                aml.resources(
                    aml.io_ports(layout.SERIAL_PORT, 8), aml.interrupt(layout.SERIAL_IRQ)
                ),
            ),
        ),
        aml.device(
            "PWRB",
            aml.name("_HID", aml.eisa_id("PNP0C0C")),
            aml.name("_UID", aml.integer(0)),
        ),
        _generation(),
        *([_processors(most)] if most else []),
        _events(processors=bool(most)),
    )
    off = [aml.integer(value) for value in (SLEEP_TYPE_OFF, 0, 0, 0)]
    return _table(b"DSDT", 6, aml.name("_S5", aml.package(off)) + system)


def _pci_root(irqs: tuple[PciIrq, ...]) -> bytes:
    routes = aml.package(
        aml.package(
            [
                aml.integer(irq.device << 16 | 0xFFFF),
                aml.integer(irq.pin),
                aml.integer(0),
                aml.integer(irq.gsi),
            ]
        )
        for irq in irqs
    )
    windows = aml.resources(
        aml.bus_numbers(0, layout.ECAM_BUSES - 1),
        aml.io_ports(0xCF8, 8),
        aml.port_window(0x1000, 0xFFFF),
        aml.memory_window(layout.PCI_WINDOW_START, layout.PCI_WINDOW_END - 1),
    )
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", aml.integer(0)),
        aml.name("_BBN", aml.integer(0)),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", windows),
        *([aml.name("_PRT", routes)] if irqs else []),
        aml.device(
            "MRES",
            aml.name("_HID", aml.eisa_id("PNP0C02")),
            aml.name(
                "_CRS",
                aml.resources(aml.fixed_memory(layout.ECAM_START, layout.ECAM_SIZE)),
            ),
        ),
        _hotplug(),
    )


def _hotplug() -> bytes:
    """The slots for removable devices (ACPI 6.5, 6.3), with our registers for them."""
    first = layout.FIRST_HOTPLUG_SLOT
    slots = range(first, first + layout.HOTPLUG_SLOTS)
    return b"".join(
        (
            aml.operation_region("PHPR", layout.HOTPLUG_PORT, _HOTPLUG_REGISTERS),
            aml.dword_fields("PHPR", "PCIU", "PCID", "PCEJ", "PCRF"),
            aml.method(
                "PREF",
                aml.when(
                    aml.equal(aml.ARGUMENT1, aml.integer(_EJECT_REQUEST)),
                    aml.store(
                        aml.bitwise_or(aml.ARGUMENT0, aml.shift_left(aml.ARGUMENT2, 8)),
                        aml.name_string("PCRF"),
                    ),
                ),
                arguments=3,
                serialized=True,
            ),
            *(_slot(slot) for slot in slots),
            aml.method(
                "PSCN",
                *_notify_slots("PCIU", slots, _DEVICE_CHECK),
                *_notify_slots("PCID", slots, _EJECT_REQUEST),
                serialized=True,
            ),
        )
    )


def _slot(slot: int) -> bytes:
    outcome = (aml.integer(slot), aml.ARGUMENT0, aml.ARGUMENT1)
    return aml.device(
        _slot_name(slot),
        aml.name("_ADR", aml.integer(slot << 16)),
        aml.name("_SUN", aml.integer(slot)),
        aml.method("_EJ0", aml.store(aml.integer(1 << slot), aml.name_string("PCEJ")), arguments=1),
        aml.method("_OST", aml.call("PREF", *outcome), arguments=3),
    )


def _notify_slots(register: str, slots: range, value: int) -> list[bytes]:
    notices = [
        aml.when(
            aml.bitwise_and(aml.LOCAL0, aml.integer(1 << slot)),
            aml.notify(_slot_name(slot), value),
        )
        for slot in slots
    ]
    return [aml.store(aml.name_string(register), aml.LOCAL0), *notices]


def _slot_name(slot: int) -> str:
    return f"S{slot:02d}_"


def _generation() -> bytes:
    address = [aml.integer(layout.GENERATION_ID), aml.integer(0)]
    return aml.device(
        "VGEN",
        aml.name("_HID", aml.string("CRNE0001")),
        aml.name("_CID", aml.string("VM_Gen_Counter")),
        aml.name("_DDN", aml.string("VM_Gen_Counter")),
        aml.name("ADDR", aml.package(address)),
    )


def _processors(most: int) -> bytes:
    """The processors, of which some may come later, with our registers for them."""
    present, announced = aml.name_string("CPRS"), aml.name_string("CANN")
    return aml.device(
        "CPUS",
        aml.name("_HID", aml.string("ACPI0010")),
        aml.name("_CID", aml.eisa_id("PNP0A05")),
        aml.operation_region("CREG", layout.CPU_PORT, _CPU_REGISTERS),
        aml.dword_fields("CREG", "CPRS", "CANN"),
        *(_processor(index) for index in range(most)),
        aml.method(
            "CSCN",
            aml.store(present, aml.LOCAL0),
            aml.store(announced, aml.LOCAL1),
            *(
                aml.when(
                    aml.both(
                        aml.less(aml.integer(index), aml.LOCAL0),
                        aml.negated(aml.less(aml.integer(index), aml.LOCAL1)),
                    ),
                    aml.notify(_processor_name(index), _DEVICE_CHECK),
                )
                for index in range(1, most)
            ),
            aml.store(aml.LOCAL0, announced),
            serialized=True,
        ),
    )


def _processor(index: int) -> bytes:
    number = aml.integer(index)
    return aml.device(
        _processor_name(index),
        aml.name("_HID", aml.string("ACPI0007")),
        aml.name("_UID", number),
        aml.name("_MAT", aml.buffer(_processor_entry(index, _ENABLED))),
        aml.method(
            "_STA",
            aml.when(aml.less(number, aml.name_string("CPRS")), aml.returned(aml.integer(_WORKS))),
            aml.returned(aml.integer(0)),
            serialized=True,
        ),
    )


def _processor_name(index: int) -> str:
    return f"C{index:03X}"


def _events(*, processors: bool) -> bytes:
    """The generic event device: one line, and a byte with its events, which reading clears."""
    pending = aml.name_string("EVTS")
    return aml.device(
        "GED_",
        aml.name("_HID", aml.string("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.interrupt(layout.POWER_IRQ))),
        aml.operation_region("EREG", layout.POWER_PORT + EVENTS, 1),
        aml.byte_fields("EREG", "EVTS"),
        aml.method(
            "_EVT",
            aml.store(pending, aml.LOCAL0),
            aml.when(
                aml.bitwise_and(aml.LOCAL0, aml.integer(EVENT_POWER_BUTTON)),
                aml.notify("\\_SB.PWRB", 0x80),
            ),
            aml.when(
                aml.bitwise_and(aml.LOCAL0, aml.integer(EVENT_GENERATION)),
                aml.notify("\\_SB.VGEN", 0x80),
            ),
            aml.when(
                aml.bitwise_and(aml.LOCAL0, aml.integer(EVENT_PCI)),
                aml.call("\\_SB.PCI0.PSCN"),
            ),
            *([_when_processors_come()] if processors else []),
            arguments=1,
            serialized=True,
        ),
    )


def _when_processors_come() -> bytes:
    came = aml.bitwise_and(aml.LOCAL0, aml.integer(EVENT_CPUS))
    return aml.when(came, aml.call("\\_SB.CPUS.CSCN"))
