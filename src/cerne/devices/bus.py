"""An address space, which maps ports or physical addresses to devices.

A device gets an offset and a size, and never knows its address. Ranges do not overlap. An address
without a device reads as all ones and ignores writes, like an open bus.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import NamedTuple, Protocol


class BusDevice(Protocol):
    """A device on a bus. Offsets are within its range; sizes are 1, 2, 4 or 8 bytes."""

    def read(self, offset: int, size: int) -> int:
        """Answer a read of so many bytes."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Handle a write of so many bytes."""


class OverlapError(Exception):
    """Two ranges of a bus would overlap; the message names both."""


class BusRange(NamedTuple):
    """The range of a device."""

    base: int
    size: int
    device: BusDevice

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.base + self.size

    def __str__(self) -> str:
        return f"{type(self.device).__name__} at {self.base:#x} to {self.end - 1:#x}"


class Bus:
    """One address space. Any thread may read and write; changes are atomic."""

    def __init__(self) -> None:
        self._change = threading.Lock()
        # Replaced as a whole, so that an access needs no lock.
        self._map: tuple[list[int], list[BusRange]] = ([], [])

    def insert(self, base: int, size: int, device: BusDevice) -> None:
        """Add a device at `base`.

        Raises:
            OverlapError: the range overlaps another device's.
        """
        new = BusRange(base, size, device)
        with self._change:
            ranges = self._map[1]
            for other in ranges:
                if new.base < other.end and other.base < new.end:
                    raise OverlapError(f"{new} would overlap {other}")
            self._replace(sorted([*ranges, new], key=lambda each: each.base))

    def remove(self, base: int) -> None:
        """Remove a device."""
        with self._change:
            self._replace([each for each in self._map[1] if each.base != base])

    def read(self, address: int, size: int) -> int:
        """Read so many bytes."""
        found = self._find(address, size)
        if found is None:
            return (1 << 8 * size) - 1
        return found.device.read(address - found.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        """Write so many bytes."""
        found = self._find(address, size)
        if found is not None:
            found.device.write(address - found.base, size, value)

    def _replace(self, ranges: list[BusRange]) -> None:
        self._map = ([each.base for each in ranges], ranges)

    def _find(self, address: int, size: int) -> BusRange | None:
        bases, ranges = self._map
        index = bisect_right(bases, address) - 1
        # An access over the end of a device reaches no device.
        if index < 0 or address + size > ranges[index].end:
            return None
        return ranges[index]
