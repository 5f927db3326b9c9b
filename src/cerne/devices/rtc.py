"""The clock of a PC with its CMOS memory (Motorola's MC146818); it shows the host's UTC time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cerne.devices.state import PlainState, SavedState

_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_STATUS_A, _STATUS_B, _STATUS_C, _STATUS_D, _CENTURY = 0xA, 0xB, 0xC, 0xD, 0x32
_BINARY, _24_HOURS, _VALID = 0x04, 0x02, 0x80
_INDEX_MASK = 0x7F


class Rtc:
    """Two ports: an index, and the byte at the index. `now` returns seconds since the epoch."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        # Several vCPUs may use the two ports at once.
        self._lock = threading.Lock()
        self._index = 0
        self._memory = bytearray(128)
        self._memory[_STATUS_A] = 0x26
        self._memory[_STATUS_B] = _24_HOURS

    def read(self, offset: int, size: int) -> int:
        """The index port returns the index; the other port returns the byte at the index."""
        with self._lock:
            if offset == 0:
                return self._index
            clock = self._clock()
            if self._index in clock:
                return self._encoded(clock[self._index])
            return _VALID if self._index == _STATUS_D else self._memory[self._index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the index, or write the byte at it; the time of day stays the host's."""
        with self._lock:
            if offset == 0:
                self._index = value & _INDEX_MASK
            elif self._index not in (_STATUS_C, _STATUS_D):
                self._memory[self._index] = value & 0xFF

    def state(self) -> PlainState:
        """The state without the time."""
        return {"index": self._index, "memory": self._memory.hex()}

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        saved = SavedState("the clock", state)
        self._index = saved.integer("index", _INDEX_MASK)
        memory = saved.data("memory", len(self._memory))
        self._memory[: len(memory)] = memory

    def _clock(self) -> dict[int, int]:
        now = time.gmtime(self._now())
        return {
            _SECONDS: now.tm_sec,
            _MINUTES: now.tm_min,
            _HOURS: now.tm_hour,
            _WEEKDAY: (now.tm_wday + 1) % 7 + 1,
            _DAY: now.tm_mday,
            _MONTH: now.tm_mon,
            _YEAR: now.tm_year % 100,
            _CENTURY: now.tm_year // 100,
        }

    def _encoded(self, value: int) -> int:
        if self._memory[_STATUS_B] & _BINARY:
            return value
        return value // 10 << 4 | value % 10
