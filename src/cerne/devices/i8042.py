"""The keyboard controller of a PC, without a keyboard: it only resets the machine.

Ports 0x60 (data) and 0x64 (status, command) of an Intel 8042. Linux resets by pulsing line 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cerne.devices.state import PlainState, SavedState

_DATA, _COMMAND = 0, 4
_PULSE_RESET = 0xFE
_SELF_TEST, _TEST_PASSED = 0xAA, 0x55
_OUTPUT_FULL = 0x01
PORTS = 5
"""Ports from 0x60 on that it takes; 0x61 to 0x63 read as zero."""


class I8042:
    """`reset` is called when the guest asks for one."""

    def __init__(self, reset: Callable[[], None]) -> None:
        self._reset = reset
        # Several vCPUs may use the ports at once.
        self._lock = threading.Lock()
        self._output: int | None = None

    def read(self, offset: int, size: int) -> int:
        """Read the status, or the one byte that a command left."""
        with self._lock:
            if offset == _COMMAND:
                return _OUTPUT_FULL if self._output is not None else 0
            if offset != _DATA or self._output is None:
                return 0
            value, self._output = self._output, None
            return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Handle a command; all but two are ignored."""
        if offset != _COMMAND:
            return
        if value == _PULSE_RESET:
            self._reset()
        elif value == _SELF_TEST:
            with self._lock:
                self._output = _TEST_PASSED

    def state(self) -> PlainState:
        """The whole state."""
        return {"output": self._output}

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        saved = SavedState("the keyboard controller", state)
        self._output = saved.optional_integer("output", 0xFF)
