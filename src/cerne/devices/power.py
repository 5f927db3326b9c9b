"""The power of a machine: ACPI's sleep and reset registers, and the events that it signals.

Hardware-reduced ACPI (ACPI 6.5, 4.8.3.7 and 4.8.3.6): one byte each for sleep control, sleep
status, reset and, for the generic event device, its pending events; reading clears them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cerne.devices.interrupt import InterruptLine
from cerne.devices.state import PlainState, SavedState

SLEEP_CONTROL, SLEEP_STATUS, RESET, EVENTS = range(4)
REGISTERS = 4
SLEEP_TYPE_OFF = 5
SLEEP_ENABLE = 1 << 5
RESET_VALUE = 1
POWER_BUTTON = 1
GENERATION_CHANGED = 2
PCI_CHANGED = 4
"""A PCI slot has a new device, or should be freed (`cerne.devices.pci.hotplug`)."""
CPUS_CHANGED = 8
"""A processor has come (`cerne.devices.cpu_hotplug`)."""

_ALL_EVENTS = POWER_BUTTON | GENERATION_CHANGED | PCI_CHANGED | CPUS_CHANGED
_SLEEP_TYPE_SHIFT = 2
_SLEEP_TYPE_MASK = 0b111


class Power:
    """`power_off` and `reset` are called when the guest asks for them."""

    def __init__(
        self, line: InterruptLine, power_off: Callable[[], None], reset: Callable[[], None]
    ) -> None:
        self._line = line
        self._power_off = power_off
        self._reset = reset
        self._lock = threading.Lock()
        self._events = 0

    def signal(self, event: int) -> None:
        """Tell the guest of an event: one of those above."""
        with self._lock:
            self._events |= event
            self._line.set(True)

    def read(self, offset: int, size: int) -> int:
        """Read the pending events; everything else reads as zero."""
        if offset != EVENTS:
            return 0
        with self._lock:
            events, self._events = self._events, 0
            self._line.set(False)
        return events

    def write(self, offset: int, size: int, value: int) -> None:
        """Switch off or reset, if the written value says so."""
        asleep = value >> _SLEEP_TYPE_SHIFT & _SLEEP_TYPE_MASK
        if offset == SLEEP_CONTROL and value & SLEEP_ENABLE and asleep == SLEEP_TYPE_OFF:
            self._power_off()
        elif offset == RESET and value == RESET_VALUE:
            self._reset()

    def state(self) -> PlainState:
        """The whole state."""
        with self._lock:
            return {"events": self._events}

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        events = SavedState("the power", state).integer("events", _ALL_EVENTS)
        with self._lock:
            self._events = events
            self._line.set(bool(events))
