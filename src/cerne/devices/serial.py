"""A 16550A serial port: all registers, both directions, its interrupts (National's PC16550D).

The line has no speed: written bytes leave at once, and received bytes wait in a queue for the
receive buffer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntFlag

from cerne.devices.interrupt import InterruptLine
from cerne.devices.state import PlainState, SavedState

DATA, INTERRUPT_ENABLE, INTERRUPT_ID, LINE_CONTROL, MODEM_CONTROL = range(5)
LINE_STATUS, MODEM_STATUS, SCRATCH = 5, 6, 7
REGISTERS = 8
"""The number of its ports."""

_FIFO_SIZE = 16
_LONGEST_QUEUE = 64 * 1024
_DIVISOR_ACCESS = 0x80
_LOOP = 0x10
_FIFOS_ENABLED = 0xC0


class Enable(IntFlag):
    """Bits of the interrupt enable register."""

    RECEIVED = 1
    TRANSMITTER_EMPTY = 2
    LINE_STATUS = 4
    MODEM_STATUS = 8


class Status(IntFlag):
    """Bits of the line status register."""

    DATA_READY = 1
    OVERRUN = 2
    TRANSMITTER_EMPTY = 0x20
    IDLE = 0x40


# Interrupt identification, the highest priority first.
_ID_LINE_STATUS, _ID_RECEIVED, _ID_TRANSMITTER, _ID_NONE = 6, 4, 2, 1
_CONNECTED = 0xB0  # carrier, data set ready, clear to send


class Serial:
    """One port; `sink` gets the guest's output, `line` is its interrupt."""

    def __init__(self, line: InterruptLine, sink: Callable[[bytes], None]) -> None:
        self._line = line
        self._sink = sink
        self._lock = threading.Lock()
        self._queue: deque[int] = deque()
        self._enabled = Enable(0)
        self._fifo_control = 0
        self._line_control = 0
        self._modem_control = 0
        self._scratch = 0
        self._divisor = 12
        self._transmitter_pending = False
        self._overrun = False

    def feed(self, data: bytes) -> int:
        """Queue bytes for the guest; return how many fitted."""
        with self._lock:
            taken = data[: _LONGEST_QUEUE - len(self._queue)]
            self._queue.extend(taken)
            self._update()
        return len(taken)

    def read(self, offset: int, size: int) -> int:
        """Read a register; each is one byte."""
        with self._lock:
            return self._read(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register; each is one byte."""
        with self._lock:
            written = self._write(offset, value & 0xFF)
        if written is not None:
            # Without the lock, because the sink may wait.
            self._sink(bytes([written]))

    def state(self) -> PlainState:
        """The whole state."""
        with self._lock:
            return {
                "queue": bytes(self._queue).hex(),
                "enabled": int(self._enabled),
                "fifo_control": self._fifo_control,
                "line_control": self._line_control,
                "modem_control": self._modem_control,
                "scratch": self._scratch,
                "divisor": self._divisor,
                "transmitter_pending": self._transmitter_pending,
                "overrun": self._overrun,
            }

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        saved = SavedState("a serial port", state)
        with self._lock:
            self._queue = deque(saved.data("queue", _LONGEST_QUEUE))
            self._enabled = Enable(saved.integer("enabled", 0xF))
            self._fifo_control = saved.integer("fifo_control", 0xFF)
            self._line_control = saved.integer("line_control", 0xFF)
            self._modem_control = saved.integer("modem_control", 0x1F)
            self._scratch = saved.integer("scratch", 0xFF)
            self._divisor = saved.integer("divisor", 0xFFFF)
            self._transmitter_pending = saved.flag("transmitter_pending")
            self._overrun = saved.flag("overrun")
            self._update()

    def _read(self, offset: int) -> int:
        value = 0
        if offset == DATA:
            value = self._divisor & 0xFF if self._divisor_access else self._receive()
        elif offset == INTERRUPT_ENABLE:
            value = self._divisor >> 8 if self._divisor_access else int(self._enabled)
        elif offset == INTERRUPT_ID:
            value = self._identify()
        elif offset == LINE_CONTROL:
            value = self._line_control
        elif offset == MODEM_CONTROL:
            value = self._modem_control
        elif offset == LINE_STATUS:
            value = self._line_status()
        elif offset == MODEM_STATUS:
            value = self._modem_status()
        elif offset == SCRATCH:
            value = self._scratch
        self._update()
        return value

    def _write(self, offset: int, value: int) -> int | None:
        """Set a register; return the byte that this sends, if any."""
        written = None
        if offset == DATA and self._divisor_access:
            self._divisor = self._divisor & 0xFF00 | value
        elif offset == DATA:
            written = self._transmit(value)
        elif offset == INTERRUPT_ENABLE and self._divisor_access:
            self._divisor = self._divisor & 0xFF | value << 8
        elif offset == INTERRUPT_ENABLE:
            newly = Enable(value & 0xF) & ~self._enabled
            self._enabled = Enable(value & 0xF)
            self._transmitter_pending |= bool(newly & Enable.TRANSMITTER_EMPTY)
        elif offset == INTERRUPT_ID:
            self._control_fifo(value)
        elif offset == LINE_CONTROL:
            self._line_control = value
        elif offset == MODEM_CONTROL:
            self._modem_control = value & 0x1F
        elif offset == SCRATCH:
            self._scratch = value
        self._update()
        return written

    @property
    def _divisor_access(self) -> bool:
        return bool(self._line_control & _DIVISOR_ACCESS)

    def _receive(self) -> int:
        return self._queue.popleft() if self._queue else 0

    def _transmit(self, value: int) -> int | None:
        self._transmitter_pending = True
        if not self._modem_control & _LOOP:
            return value
        if len(self._queue) < _FIFO_SIZE:
            self._queue.append(value)
        else:
            self._overrun = True
        return None

    def _control_fifo(self, value: int) -> None:
        self._fifo_control = value & 0xC9
        if value & 0x2:
            self._queue.clear()

    def _line_status(self) -> int:
        status = Status.TRANSMITTER_EMPTY | Status.IDLE
        if self._queue:
            status |= Status.DATA_READY
        if self._overrun:
            status |= Status.OVERRUN
            self._overrun = False
        return int(status)

    def _modem_status(self) -> int:
        if not self._modem_control & _LOOP:
            return _CONNECTED
        # The outputs are wired to the inputs: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
        out = self._modem_control
        return (out & 2) << 3 | (out & 1) << 5 | (out & 4) << 4 | (out & 8) << 4

    def _identify(self) -> int:
        fifos = _FIFOS_ENABLED if self._fifo_control & 1 else 0
        cause = self._cause()
        if cause == _ID_TRANSMITTER:
            # Reading the identification clears the interrupt.
            self._transmitter_pending = False
        return fifos | cause

    def _cause(self) -> int:
        if self._overrun and self._enabled & Enable.LINE_STATUS:
            return _ID_LINE_STATUS
        # There is no receive timeout: received bytes are reported at once.
        if self._queue and self._enabled & Enable.RECEIVED:
            return _ID_RECEIVED
        if self._transmitter_pending and self._enabled & Enable.TRANSMITTER_EMPTY:
            return _ID_TRANSMITTER
        return _ID_NONE

    def _update(self) -> None:
        self._line.set(self._cause() != _ID_NONE)
