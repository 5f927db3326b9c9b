"""A driver's side of a split virtqueue in Python, as honest or as hostile as a test wants it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cerne.devices.virtio.queue import Queue
from cerne.kvm.memory import GuestMemory

NEXT = 1
WRITE = 2
INDIRECT = 4


@dataclass(frozen=True)
class Buffer:
    """A range of guest memory that a chain lends to the device."""

    address: int
    length: int
    write: bool = False


class QueueDriver:
    """Writes descriptors and the available ring, and reads the used ring."""

    def __init__(self, memory: GuestMemory, base: int, size: int) -> None:
        self.memory = memory
        self.size = size
        self.descriptors = base
        self.available = base + 16 * size
        self.used = (self.available + 6 + 2 * size + 3) & ~3
        self.end = self.used + 6 + 8 * size
        self.offered = 0
        self.taken = 0
        self._next = 0

    def set_up(self, queue: Queue) -> None:
        """Tell the device where the rings are, as a transport does."""
        queue.size = self.size
        queue.descriptors = self.descriptors
        queue.driver = self.available
        queue.device = self.used
        queue.ready = True

    def describe(
        self, index: int, address: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        """Write one descriptor."""
        descriptor = struct.pack("<QIHH", address, length, flags, following)
        self.memory.write(self.descriptors + 16 * index, descriptor)

    def add(self, buffers: Sequence[Buffer]) -> int:
        """Describe a chain in the next free descriptors and offer it."""
        indices = [(self._next + step) % self.size for step in range(len(buffers))]
        for step, buffer in enumerate(buffers):
            last = step == len(buffers) - 1
            flags = (WRITE if buffer.write else 0) | (0 if last else NEXT)
            following = 0 if last else indices[step + 1]
            self.describe(indices[step], buffer.address, buffer.length, flags, following)
        self._next = (self._next + len(buffers)) % self.size
        self.offer(indices[0])
        return indices[0]

    def add_indirect(self, table: int, buffers: Sequence[Buffer]) -> int:
        """The same with one descriptor, which names a table elsewhere."""
        for step, buffer in enumerate(buffers):
            last = step == len(buffers) - 1
            flags = (WRITE if buffer.write else 0) | (0 if last else NEXT)
            entry = struct.pack("<QIHH", buffer.address, buffer.length, flags, step + 1)
            self.memory.write(table + 16 * step, entry)
        head = self._next
        self._next = (self._next + 1) % self.size
        self.describe(head, table, 16 * len(buffers), INDIRECT)
        self.offer(head)
        return head

    def offer(self, head: int) -> None:
        """Put a head into the available ring."""
        self.memory.write_u16(self.available + 4 + 2 * (self.offered % self.size), head)
        self.offered = (self.offered + 1) & 0xFFFF
        self.memory.write_u16(self.available + 2, self.offered)

    def take(self) -> list[tuple[int, int]]:
        """What the device gave back since the last look: heads and bytes written."""
        given = []
        while self.taken != self.memory.read_u16(self.used + 2):
            slot = self.used + 4 + 8 * (self.taken % self.size)
            given.append((self.memory.read_u32(slot), self.memory.read_u32(slot + 4)))
            self.taken = (self.taken + 1) & 0xFFFF
        return given

    def want_no_interrupt(self, unwanted: bool) -> None:
        """Set or clear the flag of the available ring."""
        self.memory.write_u16(self.available, int(unwanted))

    def want_interrupt_after(self, used_index: int) -> None:
        """Write used_event."""
        self.memory.write_u16(self.available + 4 + 2 * self.size, used_index & 0xFFFF)
