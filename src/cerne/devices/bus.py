"""An address space: which device answers at which port or physical address.

A device sees an offset and a size, and never knows where it stands. Ranges do not overlap. What
nobody answers reads as all ones and takes any write, as an open bus does.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from typing import NamedTuple, Protocol


class BusDevice(Protocol):
    """What answers on a bus. Offsets are within its range; sizes are 1, 2, 4 or 8 bytes."""

    def read(self, offset: int, size: int) -> int:
        """What a read of so many bytes gives."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a write of so many bytes."""


class OverlapError(Exception):
    """Two ranges of a bus would overlap; the message names both."""


class BusRange(NamedTuple):
    """Where a device answers."""

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
    """One address space. Any thread may read and write; changes are seen whole."""

    def __init__(self) -> None:
        self._change = threading.Lock()
        # Replaced as one, so that an access needs no lock.
        self._map: tuple[list[int], list[BusRange]] = ([], [])

    def insert(self, base: int, size: int, device: BusDevice) -> None:
        """Let a device answer from `base` on.

        Raises:
            OverlapError: another device answers there.
        """
        new = BusRange(base, size, device)
        with self._change:
            ranges = self._map[1]
            for other in ranges:
                if new.base < other.end and other.base < new.end:
                    raise OverlapError(f"{new} would overlap {other}")
            self._replace(sorted([*ranges, new], key=lambda each: each.base))

    def remove(self, base: int) -> None:
        """Let nobody answer where a device was inserted."""
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
        # An access that runs over the end of a device is nobody's.
        if index < 0 or address + size > ranges[index].end:
            return None
        return ranges[index]
