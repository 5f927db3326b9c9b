"""MSI-X: interrupts as messages that the guest writes into a table (PCI 3.0, section 6.8.2).

The table and the pending bits are in a BAR of the function. The machine routes a message
(`MsixRoutes`); a masked vector that is triggered stays pending and is delivered when it is
unmasked.
"""

from __future__ import annotations

import threading
from typing import Protocol

from cerne.devices.pci.function import PciFunction
from cerne.devices.state import PlainState, SavedState
from cerne.errors import DamagedError

MSIX_CAPABILITY = 0x11
LARGEST_TABLE = 2048
"""The most vectors that a function may have."""

_ENTRY_SIZE = 16
_VECTOR_CONTROL = 12
_MASKED = 1
_ENABLE = 1 << 15
_MASK_ALL = 1 << 14


class MsixRoutes(Protocol):
    """The routes of a function's messages."""

    def set_route(self, vector: int, address: int, data: int, masked: bool) -> None:
        """The guest has written a vector's message, masked it or unmasked it."""

    def trigger(self, vector: int) -> None:
        """Send a vector's message; called for none that is masked."""

    def eventfd(self, vector: int) -> int:
        """The eventfd with which others trigger a vector; it keeps a write while that is masked.

        There is one more eventfd than vectors, which has no route.
        """


class MsixTable:
    """The vectors of one function: the table, the pending bits and the capability."""

    def __init__(self, count: int, routes: MsixRoutes) -> None:
        if not 0 < count <= LARGEST_TABLE:
            raise ValueError(f"{count} is not a number of vectors that a function may have")
        self.count = count
        self._routes = routes
        self._lock = threading.Lock()
        self._function: PciFunction | None = None
        self._control_offset = 0
        self.reset()

    @property
    def table_size(self) -> int:
        """Bytes of the table."""
        return _ENTRY_SIZE * self.count

    @property
    def pending_size(self) -> int:
        """Bytes of the pending bits, in whole 64-bit words."""
        return (self.count + 63) // 64 * 8

    def add_to(self, function: PciFunction, bar: int, table: int, pending: int) -> None:
        """Append the capability; table and pending bits lie at those offsets of that BAR."""
        body = (self.count - 1).to_bytes(2, "little")
        body += (table | bar).to_bytes(4, "little") + (pending | bar).to_bytes(4, "little")
        writable = (_ENABLE | _MASK_ALL).to_bytes(2, "little")
        self._control_offset = function.add_capability(MSIX_CAPABILITY, body, writable) + 2
        self._function = function

    def reset(self) -> None:
        """Every vector masked and empty, none pending."""
        with self._lock:
            self._table = bytearray((bytes(_VECTOR_CONTROL) + b"\1\0\0\0") * self.count)
            self._pending = 0
            self._enabled = False
            self._mask_all = False

    def control_written(self) -> None:
        """Read the capability again after the guest wrote configuration bytes."""
        if self._function is None:
            return
        control = self._function.read_config(self._control_offset, 2)
        enabled, mask_all = bool(control & _ENABLE), bool(control & _MASK_ALL)
        with self._lock:
            if (enabled, mask_all) == (self._enabled, self._mask_all):
                return
            self._enabled, self._mask_all = enabled, mask_all
            self._set_routes(range(self.count))

    def trigger(self, vector: int) -> None:
        """Send a vector's message now, or when the guest unmasks it; ignore an unknown vector."""
        if not 0 <= vector < self.count:
            return
        with self._lock:
            if not self._enabled:
                return
            if self._masked(vector):
                self._pending |= 1 << vector
            else:
                self._routes.trigger(vector)

    def eventfd(self, vector: int) -> int:
        """The eventfd with which others trigger a vector; the one after the last has no route."""
        with self._lock:
            return self._routes.eventfd(vector)

    def read_table(self, offset: int, size: int) -> int:
        """Read bytes of the table; zero past its end."""
        return int.from_bytes(self._table[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> None:
        """Write 4 or 8 aligned bytes of the table; other writes, and those past it, are dropped."""
        if size not in (4, 8) or offset % size or offset + size > self.table_size:
            return
        with self._lock:
            self._table[offset : offset + size] = value.to_bytes(size, "little")
            self._set_routes((offset // _ENTRY_SIZE,))

    def read_pending(self, offset: int, size: int) -> int:
        """Read bytes of the pending bits."""
        return self._pending >> 8 * offset & (1 << 8 * size) - 1

    def state(self) -> PlainState:
        """The table and the pending bits."""
        with self._lock:
            return {"table": self._table.hex(), "pending": f"{self._pending:x}"}

    def restore(self, state: PlainState) -> None:
        """Restore the table, after the configuration space; sets the routes."""
        saved = SavedState("an MSI-X table", state)
        table = saved.data("table", self.table_size)
        try:
            pending = int(saved.text("pending", self.count), 16)
        except ValueError as error:
            raise DamagedError("the saved pending bits of MSI-X are not a number") from error
        if len(table) != self.table_size or not 0 <= pending < 1 << self.count:
            raise DamagedError("the saved MSI-X table belongs to another function")
        with self._lock:
            self._table[:] = table
            self._pending = pending
            self._enabled, self._mask_all = False, False
        self.control_written()

    def _masked(self, vector: int) -> bool:
        control = self._table[_ENTRY_SIZE * vector + _VECTOR_CONTROL]
        return self._mask_all or bool(control & _MASKED)

    def _set_routes(self, vectors: range | tuple[int, ...]) -> None:
        for vector in vectors:
            entry = self._table[_ENTRY_SIZE * vector : _ENTRY_SIZE * (vector + 1)]
            address = int.from_bytes(entry[:8], "little")
            data = int.from_bytes(entry[8:12], "little")
            masked = not self._enabled or self._masked(vector)
            self._routes.set_route(vector, address, data, masked)
            if not masked and self._pending >> vector & 1:
                self._pending &= ~(1 << vector)
                self._routes.trigger(vector)
