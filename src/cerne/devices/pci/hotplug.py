"""Registers that tell a guest that a PCI slot has a new device, or should be freed.

They are our own, and the guest's DSDT describes them, as in other hypervisors (ACPI 6.5, section
6.3: _EJ0 and _OST). Four registers of four bytes, with a bit for each slot in the first three:

    0x0  up       the slot has a new device; reading clears it 0x4  down     the slot should be
    freed; reading clears it 0x8  eject    written by the guest: it has released the device in the
    slot 0xc  refused  written by the guest: the slot, and above 8 bits _OST's status

A guest can release only devices that it was asked for: only the owner removes a disk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cerne.devices.state import PlainState, SavedState

REGISTERS = 16
"""Bytes."""
SLOTS = 32

_UP, _DOWN, _EJECT, _REFUSED = 0x0, 0x4, 0x8, 0xC
_ALL_SLOTS = (1 << SLOTS) - 1
# Success, and the status of an unfinished ejection.
_NO_REFUSALS = (0x00, 0x83)


class PciHotplug:
    """The registers. Its callbacks are called from any thread, and must not wait.

    `signal` makes the guest read the registers; `eject` and `refuse` get the requested slot, once
    for each `ask_back`.
    """

    def __init__(
        self,
        signal: Callable[[], None],
        eject: Callable[[int], None],
        refuse: Callable[[int], None],
    ) -> None:
        self._signal = signal
        self._eject = eject
        self._refuse = refuse
        self._lock = threading.Lock()
        self._up = 0
        self._down = 0
        self._asked = 0

    @property
    def asked(self) -> list[int]:
        """The requested slots that the guest has not answered yet."""
        with self._lock:
            return [slot for slot in range(SLOTS) if self._asked >> slot & 1]

    def plugged(self, slot: int) -> None:
        """Tell the guest that a slot has a new device."""
        with self._lock:
            self._up |= 1 << slot
        self._signal()

    def ask_back(self, slot: int) -> None:
        """Ask the guest to release the device in a slot; ask again if it was asked before."""
        with self._lock:
            self._asked |= 1 << slot
            self._down |= 1 << slot
        self._signal()

    def forget(self, slot: int) -> None:
        """Cancel the notifications of a slot, whose device has gone or is no longer requested."""
        with self._lock:
            self._up &= ~(1 << slot)
            self._down &= ~(1 << slot)
            self._asked &= ~(1 << slot)

    def read(self, offset: int, size: int) -> int:
        """Read a register; all but `up` and `down` read as zero."""
        if size != 4:
            return 0
        with self._lock:
            if offset == _UP:
                value, self._up = self._up, 0
            elif offset == _DOWN:
                value, self._down = self._down, 0
            else:
                value = 0
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Handle the guest's answer about slots; other writes are dropped."""
        if size != 4:
            return
        if offset == _EJECT:
            for slot in self._answered(value):
                self._eject(slot)
        elif offset == _REFUSED and value & 0xFF < SLOTS and value >> 8 not in _NO_REFUSALS:
            for slot in self._answered(1 << (value & 0xFF)):
                self._refuse(slot)

    def state(self) -> PlainState:
        """The whole state."""
        with self._lock:
            return {"up": self._up, "down": self._down, "asked": self._asked}

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        saved = SavedState("the hot-plug registers", state)
        up, down, asked = (saved.integer(name, _ALL_SLOTS) for name in ("up", "down", "asked"))
        with self._lock:
            self._up, self._down, self._asked = up, down, asked

    def _answered(self, slots: int) -> list[int]:
        """The requested slots among these; their requests end."""
        with self._lock:
            answered = slots & self._asked
            self._asked &= ~answered
            self._down &= ~answered
        return [slot for slot in range(SLOTS) if answered >> slot & 1]
