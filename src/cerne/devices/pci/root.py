"""The root of PCI: one bus of functions, reached by two ports or by memory.

Configuration mechanism #1 (PCI 3.0, section 3.2.2.3.2) is an address written to port 0xcf8 and data
at 0xcfc; ECAM (PCI Express, section 7.2.2) gives each function 4 KiB of memory. Missing functions
read as all ones.
"""

from __future__ import annotations

import threading

from cerne.devices.pci.function import BarMapper, PciFunction, PciIdentity
from cerne.devices.state import PlainState, SavedState

CONFIG_PORT = 0xCF8
CONFIG_PORT_COUNT = 8
SLOT_COUNT = 32
ECAM_BUS_SIZE = 1 << 20
"""Bytes of memory that ECAM needs for the one bus."""

_ENABLE = 1 << 31
_HOST_BRIDGE = PciIdentity(vendor=0x8086, device=0x0D57, class_code=0x060000)


class PciRoot:
    """Bus 0, with a host bridge in slot 0 and one function in each slot behind it.

    `free_slot` never returns a slot from `first_kept` on.
    """

    def __init__(self, mapper: BarMapper, first_kept: int = SLOT_COUNT) -> None:
        self._mapper = mapper
        self._first_kept = first_kept
        # Held for each access to configuration, because two vCPUs may move one BAR at the same
        # time, by either way, and functions come and go. Devices' locks are taken inside of it,
        # never the reverse.
        self._lock = threading.RLock()
        self._functions: dict[int, PciFunction] = {0: PciFunction(_HOST_BRIDGE)}
        self.ports = ConfigPorts(self)
        """For the port bus, at CONFIG_PORT, CONFIG_PORT_COUNT ports wide."""
        self.ecam = Ecam(self)
        """For the memory bus, ECAM_BUS_SIZE bytes."""

    @property
    def functions(self) -> dict[int, PciFunction]:
        """The functions by their slots."""
        with self._lock:
            return dict(self._functions)

    def free_slot(self) -> int:
        """The first free slot before `first_kept`."""
        with self._lock:
            for slot in range(self._first_kept):
                if slot not in self._functions:
                    return slot
        raise ValueError("the PCI bus has no free slot")

    def add(self, function: PciFunction, slot: int | None = None) -> int:
        """Add a function in the named slot or a free one; returns the slot."""
        with self._lock:
            chosen = self.free_slot() if slot is None else slot
            if chosen in self._functions or not 0 <= chosen < SLOT_COUNT:
                raise ValueError(f"slot {chosen} of the PCI bus is not free")
            self._functions[chosen] = function
            function.attach(self._mapper)
        return chosen

    def remove(self, slot: int) -> PciFunction:
        """Remove the function in a slot, unmap it, and return it to the caller."""
        with self._lock:
            function = self._functions.pop(slot)
            function.detach()
        return function

    def read(self, address: int, size: int) -> int:
        """Read configuration: bus, slot and function above 12 bits of register, as ECAM does."""
        with self._lock:
            function = self._functions.get(address >> 15)
            if function is None or address >> 12 & 7:
                return (1 << 8 * size) - 1
            return function.read_config(address & 0xFFF, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write configuration, at the same addresses."""
        with self._lock:
            function = self._functions.get(address >> 15)
            if function is not None and not address >> 12 & 7:
                function.write_config(address & 0xFFF, size, value)


class ConfigPorts:
    """Ports 0xcf8 to 0xcff."""

    def __init__(self, root: PciRoot) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._address = 0

    def read(self, offset: int, size: int) -> int:
        """Read the address, or the configuration that it names."""
        with self._lock:
            if offset == 0 and size == 4:
                return self._address
            if not self._names_data(offset, size):
                return (1 << 8 * size) - 1
            return self._root.read(self._target(offset), size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write the address, or the configuration that it names."""
        with self._lock:
            if offset == 0 and size == 4:
                self._address = value & (_ENABLE | 0xFFFFFC)
            elif self._names_data(offset, size):
                self._root.write(self._target(offset), size, value)

    def power_on(self) -> None:
        """Forget the address."""
        self._address = 0

    def state(self) -> PlainState:
        """The address register."""
        return {"address": self._address}

    def restore(self, state: PlainState) -> None:
        """Restore the address register; raises DamagedError if it is not valid."""
        address = SavedState("the PCI ports", state).integer("address", 0xFFFFFFFF)
        self._address = address & (_ENABLE | 0xFFFFFC)

    def _names_data(self, offset: int, size: int) -> bool:
        return offset >= 4 and offset + size <= 8 and bool(self._address & _ENABLE)

    def _target(self, offset: int) -> int:
        function = self._address >> 8 & 0xFFFF
        return function << 12 | self._address & 0xFC | offset - 4


class Ecam:
    """Configuration as memory. Accesses of 8 bytes are two of 4."""

    def __init__(self, root: PciRoot) -> None:
        self._root = root

    def read(self, offset: int, size: int) -> int:
        """Read configuration."""
        if size == 8:
            return self.read(offset, 4) | self.read(offset + 4, 4) << 32
        return self._root.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write configuration."""
        if size == 8:
            self.write(offset, 4, value & 0xFFFFFFFF)
            self.write(offset + 4, 4, value >> 32)
        else:
            self._root.write(offset, size, value)
