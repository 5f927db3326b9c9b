"""Registers by which a guest learns that a PCI slot has something new, or is to be freed.

They are ours, and described to the guest by its DSDT, as those of other hypervisors are (ACPI 6.5,
section 6.3: _EJ0 and _OST). Four registers of four bytes, a bit for each slot in the first three:

    0x0  up       something new is in the slot; forgotten as it is read
    0x4  down     the slot is to be freed; forgotten as it is read
    0x8  eject    written by the guest: it has let go of what is in the slot
    0xc  refused  written by the guest: the slot, and above 8 bits _OST's status of its freeing

A guest can let go only of what it was asked for: nobody takes a disk from a machine but its owner.
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
# Success, and what is said while it goes on.
_NO_REFUSALS = (0x00, 0x83)


class PciHotplug:
    """The registers. What it is given is called from whatever thread, and must not wait.

    `signal` has the guest look at the registers; `eject` and `refuse` are told the slot that was
    asked for, once for each `ask_back`.
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
        """The slots that were asked for, and about which the guest has said nothing yet."""
        with self._lock:
            return [slot for slot in range(SLOTS) if self._asked >> slot & 1]

    def plugged(self, slot: int) -> None:
        """Tell the guest that something new is in a slot."""
        with self._lock:
            self._up |= 1 << slot
        self._signal()

    def ask_back(self, slot: int) -> None:
        """Ask the guest to let go of what is in a slot; once more where it was asked before."""
        with self._lock:
            self._asked |= 1 << slot
            self._down |= 1 << slot
        self._signal()

    def forget(self, slot: int) -> None:
        """Say no more of a slot: what was in it is gone, or is not asked back any longer."""
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
        """Take what the guest says of slots; anything else is dropped."""
        if size != 4:
            return
        if offset == _EJECT:
            for slot in self._answered(value):
                self._eject(slot)
        elif offset == _REFUSED and value & 0xFF < SLOTS and value >> 8 not in _NO_REFUSALS:
            for slot in self._answered(1 << (value & 0xFF)):
                self._refuse(slot)

    def state(self) -> PlainState:
        """All that it is."""
        with self._lock:
            return {"up": self._up, "down": self._down, "asked": self._asked}

    def restore(self, state: PlainState) -> None:
        """Be what `state` says; raises DamagedError where that cannot be."""
        saved = SavedState("the hot-plug registers", state)
        up, down, asked = (saved.integer(name, _ALL_SLOTS) for name in ("up", "down", "asked"))
        with self._lock:
            self._up, self._down, self._asked = up, down, asked

    def _answered(self, slots: int) -> list[int]:
        """Which of these slots were asked for; they are so no more."""
        with self._lock:
            answered = slots & self._asked
            self._asked &= ~answered
            self._down &= ~answered
        return [slot for slot in range(SLOTS) if answered >> slot & 1]
