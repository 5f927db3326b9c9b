"""Registers that tell a guest which of its possible processors are there.

They are our own, and the guest's DSDT describes them (ACPI 6.5, 8.4: processor devices with _STA
and _MAT). Two registers of four bytes:

    0x0  present    processors that are there: those with lower numbers
    0x4  announced  processors of which the guest's devices know; written by the guest

Processors only come.
"""

from __future__ import annotations

import threading

from cerne.devices.state import PlainState, SavedState

REGISTERS = 8
"""Bytes."""
_PRESENT, _ANNOUNCED = 0x0, 0x4
_MOST = 1 << 12


class CpuHotplug:
    """The registers of a machine that has so many processors at first."""

    def __init__(self, present: int) -> None:
        self._lock = threading.Lock()
        self._present = present
        self._announced = present

    @property
    def present(self) -> int:
        """How many processors are there."""
        return self._present

    def add(self, present: int) -> None:
        """Have so many processors, which are more than before."""
        with self._lock:
            self._present = present

    def read(self, offset: int, size: int) -> int:
        """Read a register; all else reads as zero."""
        if size != 4:
            return 0
        with self._lock:
            return {_PRESENT: self._present, _ANNOUNCED: self._announced}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Take the number that the guest has announced; other writes are dropped."""
        if offset == _ANNOUNCED and size == 4:
            with self._lock:
                self._announced = min(value, self._present)

    def state(self) -> PlainState:
        """The whole state."""
        with self._lock:
            return {"present": self._present, "announced": self._announced}

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        saved = SavedState("the processors", state)
        present = saved.integer("present", _MOST, 1)
        announced = saved.integer("announced", present)
        with self._lock:
            self._present, self._announced = present, announced
