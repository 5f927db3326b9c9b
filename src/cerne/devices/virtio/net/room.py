"""A driver's buffers for the frames of one turn (virtio 1.2, section 5.1.6.4).

With mergeable buffers a frame may be in several, and its header has their count; the driver gets
all of them at once. Otherwise a frame is in one buffer.
"""

from __future__ import annotations

import struct
from collections import deque

from cerne.devices.virtio.buffers import scatter, split
from cerne.devices.virtio.net.header import HEADER_SIZE
from cerne.devices.virtio.queue import Chain, Queue, QueueError
from cerne.units import counted

_COUNT = struct.Struct("<H")
_COUNT_OFFSET = 10


class Room:
    """The buffers; `give_back` returns those without a frame."""

    def __init__(self, queue: Queue, *, merge: bool, most_views: int) -> None:
        self._queue = queue
        self.merge = merge
        """Whether a frame may be in several buffers."""
        self._most_views = most_views
        self._chains: deque[tuple[Chain, int]] = deque()
        self.views: list[memoryview] = []
        """The views for the next frame, its header first."""
        self.size = 0
        """The bytes of these views."""

    def reserve(self, wanted: int) -> bool:
        """Pop buffers for so many bytes, or one if they do not merge; return whether there were.

        If there were none, the driver kicks for its next buffer.
        """
        while not self._suffices(wanted):
            chain = self._queue.pop()
            if chain is None and self._queue.enable_notification():
                chain = self._queue.pop()
            if chain is None:
                return False
            self._add(chain)
        return True

    def fill(self, start: int, data: memoryview) -> None:
        """Copy data into a frame after `start` bytes."""
        scatter(split(self.views, start)[1], data)

    def use(self, size: int) -> None:
        """Give the driver a frame of this size, which is in the views."""
        first = self._chains[0][0].writable
        used: list[tuple[int, int]] = []
        views = 0
        while size > 0:
            chain, room = self._chains.popleft()
            used.append((chain.head, min(size, room)))
            views += len(chain.writable)
            self.size -= room
            size -= room
        _set_count(first, len(used))
        self._queue.push_all(used)
        del self.views[:views]

    def give_back(self) -> None:
        """Put unused buffers back into the queue."""
        self._queue.put_back(len(self._chains))

    def _suffices(self, wanted: int) -> bool:
        if not self._chains or not self.merge:
            return bool(self._chains)
        return self.size >= wanted or len(self.views) >= self._most_views

    def _add(self, chain: Chain) -> None:
        size = chain.writable_size
        if size < HEADER_SIZE:
            raise QueueError(f"a buffer for frames has {counted(size, 'byte')}, less than a header")
        self._chains.append((chain, size))
        self.views += chain.writable
        self.size += size


def _set_count(views: tuple[memoryview, ...], count: int) -> None:
    if len(views[0]) >= HEADER_SIZE:
        _COUNT.pack_into(views[0], _COUNT_OFFSET, count)
    else:
        scatter(split(views, _COUNT_OFFSET)[1], _COUNT.pack(count))
