"""The layout of a machine's physical address space.

Memory below 4 GiB ends at `HOLE_START`; the rest starts at 4 GiB. The hole between has PCI windows,
ECAM and the interrupt controllers. The low megabyte has the data of the boot protocols; the guest
may use all of it after its start.
"""

from __future__ import annotations

from cerne.kvm.memory import BLOCK_SIZE, GuestAddress
from cerne.units import GIB, MIB

GDT = GuestAddress(0x500)
PVH_INFO = GuestAddress(0x6000)
ZERO_PAGE = GuestAddress(0x7000)
BOOT_STACK = GuestAddress(0x8FF0)
PAGE_TABLES = GuestAddress(0x9000)
COMMAND_LINE = GuestAddress(0x20000)
COMMAND_LINE_SPACE = 0x10000
MP_TABLE = GuestAddress(0x9FC00)
"""The last KiB of base memory, where Multiprocessor Specification 1.4 has it looked for first."""
ACPI_TABLES = GuestAddress(0xE0000)
"""The RSDP must be found on a 16 byte boundary from here (ACPI 6.5, 5.2.5.1)."""
GENERATION_ID = GuestAddress(0xF0000)
PCI_ROUTING_TABLE = GuestAddress(0xF0010)
"""Near the start of the 64 KiB that are searched for it."""
LOW_END = 0x9FC00
HIGH_START = 1 * MIB

HOLE_START = 3 * GIB
HOLE_END = 4 * GIB
PCI_WINDOW_START = 0xC000_0000
PCI_WINDOW_END = 0xE000_0000
ECAM_START = 0xE000_0000
ECAM_BUSES = 1
ECAM_SIZE = ECAM_BUSES * MIB
IOAPIC = 0xFEC0_0000
LAPIC = 0xFEE0_0000
IDENTITY_MAP = 0xFFFB_C000
"""The page that KVM needs for real mode on older Intel processors; the TSS's three follow it."""
TSS = 0xFFFB_D000

SERIAL_PORT = 0x3F8
SERIAL_IRQ = 4
POWER_PORT = 0x600
"""ACPI registers: sleep control, sleep status, reset (one byte each), event status (one byte)."""
POWER_IRQ = 9
HOTPLUG_PORT = 0x610
"""The registers of `cerne.devices.pci.hotplug`."""
CPU_PORT = 0x620
"""The registers of `cerne.devices.cpu_hotplug`."""
FIRST_HOTPLUG_SLOT = 24
"""The slots of PCI bus 0 from this one on are for devices that come and go."""
HOTPLUG_SLOTS = 8
MEMORY_SLOT = FIRST_HOTPLUG_SLOT - 1
"""The slot of the device that plugs memory, the last that other devices take."""
_ROOM_END = 1 << 39
"""Every processor with 64 bits has so many addresses."""


def memory_ranges(size: int) -> list[tuple[GuestAddress, int]]:
    """The (address, length) of a machine's memory of `size` bytes, around the hole."""
    low = min(size, HOLE_START)
    ranges = [(GuestAddress(0), low)]
    if size > low:
        ranges.append((GuestAddress(HOLE_END), size - low))
    return ranges


def room(memory: int, headroom: int) -> tuple[GuestAddress, int]:
    """The (address, length) of the room for plugged memory behind a machine's `memory` bytes.

    Its length is 0 if there is no address for it.
    """
    end = max(start + size for start, size in memory_ranges(memory))
    start = -(-max(end, HOLE_END) // GIB) * GIB
    size = max(0, min(headroom, _ROOM_END - start))
    return GuestAddress(start), size - size % BLOCK_SIZE
