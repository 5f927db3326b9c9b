"""The split virtqueue as a device sees it (virtio 1.2, section 2.7).

A driver describes buffers in a table, offers the heads of chains in one ring, and gets them back in
another. All three are in guest memory, so the guest controls every number in them and may change it
at any time: each is read once, checked, and then used. The bytes of a chain are views of guest
memory, usable with preadv(2) and pwritev(2).
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from cerne.devices.state import PlainState, SavedState
from cerne.errors import DamagedError, GuestError
from cerne.kvm.memory import GuestMemory, GuestMemoryError
from cerne.units import counted

LARGEST_QUEUE = 32768
"""The most entries that a split virtqueue may have."""

_NEXT = 1
_WRITE = 2
_INDIRECT = 4
_NO_INTERRUPT = 1
_NO_NOTIFY = 1

_LARGEST_CHAIN = 1 << 32
_LARGEST_ADDRESS = (1 << 64) - 1

# Native order and alignment, so that the interpreter reads an aligned number in one piece.
_DESCRIPTOR = struct.Struct("@QIHH")
_USED_ELEMENT = struct.Struct("@II")
_U16 = struct.Struct("@H")

_AVAIL_RING = 4
_USED_RING = 4


class QueueError(GuestError):
    """A driver broke the rules of a virtqueue; the device needs a reset."""

    code = "guest-queue"


class Chain(NamedTuple):
    """One request of the driver: the buffers to read, then the buffers to write."""

    head: int
    """The descriptor that identifies the chain when it is returned."""
    readable: tuple[memoryview, ...]
    writable: tuple[memoryview, ...]

    @property
    def readable_size(self) -> int:
        """Bytes for the device to read."""
        return sum(map(len, self.readable))

    @property
    def writable_size(self) -> int:
        """Bytes for the device to write."""
        return sum(map(len, self.writable))


class _Rings(NamedTuple):
    """The addresses of a queue in use, checked when the driver declares it ready."""

    descriptors: memoryview
    driver: memoryview
    driver_words: memoryview
    """The same as 16-bit numbers, each of which is read in one piece."""
    device: memoryview
    device_words: memoryview
    """The same as 16-bit numbers, for writes in one piece: struct writes zeros first."""


class Queue:
    """One virtqueue; the transport sets its addresses, and a device uses the rest.

    It belongs to one thread at a time. Methods that read the guest's rings raise `QueueError` if
    the driver broke the rules.
    """

    def __init__(self, memory: GuestMemory, maximum: int) -> None:
        if not 0 < maximum <= LARGEST_QUEUE or maximum & (maximum - 1):
            raise ValueError(f"{maximum} is not a number of entries that a queue may have")
        self._memory = memory
        self.maximum = maximum
        """The most entries that the driver may choose."""
        self._fence = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget all settings of the driver."""
        self.size = self.maximum
        self.descriptors = 0
        self.driver = 0
        self.device = 0
        self.msix_vector: int | None = None
        self.event_index = False
        self.indirect = False
        self._rings: _Rings | None = None
        self._next_available = 0
        self._next_used = 0
        self._announced = 0

    @property
    def ready(self) -> bool:
        """Whether the driver has declared the queue ready."""
        return self._rings is not None

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._rings = self._find_rings() if ready else None

    @property
    def pending(self) -> bool:
        """Whether the driver has offered chains that were not popped."""
        rings = self._rings
        return rings is not None and self._available(rings) > 0

    @property
    def next_available(self) -> int:
        """The index in the driver's ring of the next chain to pop."""
        return self._next_available

    def used_index(self) -> int:
        """The number of returned chains, modulo 2^16, from the ring.

        For a queue that a backend serves; the guest may change its rings.
        """
        index: int = _U16.unpack_from(self._in_use().device, 2)[0]
        return index

    def take_back(self, next_available: int) -> None:
        """Continue where a backend stopped."""
        self._next_available = next_available & 0xFFFF
        self._next_used = self._announced = self.used_index()

    def offer_again(self) -> None:
        """Offer the chains again that a former backend did not return.

        These may be any of the offered chains, because a backend answers in any order, and the next
        backend starts after as many chains as were answered. So the unanswered chains are written
        there, in entries that the driver does not use any more, as far as the rings still have
        them: they do not if a chain waited while the whole ring was used once.
        """
        rings = self._in_use()
        used = self.used_index()
        unanswered = (_U16.unpack_from(rings.driver, 2)[0] - used) & 0xFFFF
        if unanswered > self.size:
            raise QueueError(
                f"the driver offers {counted(unanswered, 'chain')} in a queue of"
                f" {counted(self.size, 'entry')}"
            )
        seen = min(self.size - unanswered, used)
        slots = range(used - seen, used + unanswered)
        waiting: list[int] = [
            _U16.unpack_from(rings.driver, _AVAIL_RING + 2 * (slot % self.size))[0]
            for slot in slots
        ]
        for slot in slots[:seen]:
            head = _USED_ELEMENT.unpack_from(rings.device, _USED_RING + 8 * (slot % self.size))[0]
            if head in waiting:
                waiting.remove(head)
        # Otherwise the guest has damaged its rings, which the backend will notice.
        if len(waiting) == unanswered:
            for slot, head in zip(slots[seen:], waiting, strict=True):
                _U16.pack_into(rings.driver, _AVAIL_RING + 2 * (slot % self.size), head)
        self.take_back(used)

    def pop(self) -> Chain | None:
        """The next offered chain, or None if there is none now."""
        chains = self.pop_some(1)
        return chains[0] if chains else None

    def pop_some(self, most: int) -> list[Chain]:
        """The next offered chains, as many as there are now but no more than `most`."""
        rings, at = self._rings, self._next_available
        if rings is None:
            return []
        chains: list[Chain] = []
        heads, size = rings.driver_words, self.size
        try:
            for _ in range(min(most, self._available(rings))):
                chains.append(self._chain(rings, heads[_AVAIL_RING // 2 + at % size]))
                at = (at + 1) & 0xFFFF
        except QueueError:
            # The next call raises it, after those before it are served.
            if not chains:
                raise
        self._next_available = at
        return chains

    def put_back(self, count: int = 1) -> None:
        """Undo so many of the last `pop`s: their chains are the next ones again."""
        self._next_available = (self._next_available - count) & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Return the chain of that head, with the number of bytes written to it."""
        self.push_all(((head, written),))

    def push_all(self, chains: Iterable[tuple[int, int]]) -> None:
        """Return chains, by head and number of bytes; the driver sees all of them at once."""
        rings, at = self._in_use(), self._next_used
        ring, size, pack = rings.device, self.size, _USED_ELEMENT.pack_into
        for head, written in chains:
            pack(ring, _USED_RING + 8 * (at % size), head, written)
            at = (at + 1) & 0xFFFF
        self._next_used = rings.device_words[1] = at

    def should_notify(self) -> bool:
        """Whether the driver wants an interrupt for the chains pushed since the last call."""
        rings = self._in_use()
        self._order_writes_before_reads()
        before, self._announced = self._announced, self._next_used
        if self._next_used == before:
            return False
        if not self.event_index:
            flags: int = _U16.unpack_from(rings.driver, 0)[0]
            return not flags & _NO_INTERRUPT
        event: int = _U16.unpack_from(rings.driver, _AVAIL_RING + 2 * self.size)[0]
        passed = (self._next_used - event - 1) & 0xFFFF
        return passed < (self._next_used - before) & 0xFFFF

    def disable_notification(self) -> None:
        """Ask the driver not to kick while the queue is being served."""
        if not self.event_index:
            self._in_use().device_words[0] = _NO_NOTIFY

    def enable_notification(self) -> bool:
        """Ask the driver to kick for the next chain it offers.

        Returns True if chains were offered meanwhile, for which no kick comes.
        """
        rings = self._in_use()
        if self.event_index:
            rings.device_words[(_USED_RING + 8 * self.size) // 2] = self._next_available
        else:
            rings.device_words[0] = 0
        self._order_writes_before_reads()
        return self._available(rings) > 0

    def state(self) -> PlainState:
        """The driver's settings and the device's position."""
        return {
            "size": self.size,
            "descriptors": self.descriptors,
            "driver": self.driver,
            "device": self.device,
            "ready": self.ready,
            "msix_vector": self.msix_vector,
            "event_index": self.event_index,
            "indirect": self.indirect,
            "next_available": self._next_available,
            "next_used": self._next_used,
            "announced": self._announced,
        }

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid.

        A queue with rings outside of memory was never ready.
        """
        saved = SavedState("a virtqueue", state)
        self._rings = None
        self.size = saved.integer("size", 0xFFFF)
        self.descriptors = saved.integer("descriptors", _LARGEST_ADDRESS)
        self.driver = saved.integer("driver", _LARGEST_ADDRESS)
        self.device = saved.integer("device", _LARGEST_ADDRESS)
        self.msix_vector = saved.optional_integer("msix_vector", 0xFFFF)
        self.event_index = saved.flag("event_index")
        self.indirect = saved.flag("indirect")
        self._next_available = saved.integer("next_available", 0xFFFF)
        self._next_used = saved.integer("next_used", 0xFFFF)
        self._announced = saved.integer("announced", 0xFFFF)
        try:
            self.ready = saved.flag("ready")
        except QueueError as error:
            raise DamagedError(
                f"the saved state of a virtqueue is not valid: {error.message}"
            ) from error

    def _in_use(self) -> _Rings:
        if self._rings is None:
            raise QueueError("the driver has not made the queue ready")
        return self._rings

    def _order_writes_before_reads(self) -> None:
        # x86 may execute a read before an earlier write; taking a lock is Python's full barrier.
        # Without it both sides may miss the other's write, and sleep.
        with self._fence:
            pass

    def _find_rings(self) -> _Rings:
        if not 0 < self.size <= self.maximum or self.size & (self.size - 1):
            raise QueueError(
                f"the queue has {counted(self.size, 'entry')}; the most are {self.maximum}"
            )
        driver = self._ring("available ring", self.driver, 6 + 2 * self.size, 2)
        device = self._ring("used ring", self.device, 6 + 8 * self.size, 4)
        return _Rings(
            descriptors=self._ring("descriptor table", self.descriptors, 16 * self.size, 16),
            driver=driver,
            driver_words=driver.cast("H"),
            device=device,
            device_words=device.cast("H"),
        )

    def _ring(self, what: str, address: int, length: int, alignment: int) -> memoryview:
        if address % alignment:
            raise QueueError(
                f"the {what} at {address:#x} is not aligned to {counted(alignment, 'byte')}"
            )
        return self._view(what, address, length)

    def _view(self, what: str, address: int, length: int) -> memoryview:
        try:
            return self._memory.view(address, length)
        except GuestMemoryError as error:
            raise QueueError(f"the {what} of a queue is not in memory: {error.message}") from error

    def _available(self, rings: _Rings) -> int:
        count: int = (rings.driver_words[1] - self._next_available) & 0xFFFF
        if count > self.size:
            raise QueueError(
                f"the driver offers {counted(count, 'chain')} in a queue of"
                f" {counted(self.size, 'entry')}"
            )
        return count

    def _chain(self, rings: _Rings, head: int) -> Chain:
        if head < self.size:
            address, length, flags, _ = _DESCRIPTOR.unpack_from(rings.descriptors, 16 * head)
            if not flags & (_NEXT | _INDIRECT):
                view = self._view("buffer", address, length)
                return Chain(head, (), (view,)) if flags & _WRITE else Chain(head, (view,), ())
        # What was read is of no more use: the driver may have changed it.
        return self._long_chain(rings, head)

    def _long_chain(self, rings: _Rings, head: int) -> Chain:
        """A chain of several descriptors, of which another table may have some."""
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        left = _LARGEST_CHAIN
        for address, length, flags in self._walk(rings.descriptors, head, self.size):
            left -= length
            if left < 0:
                raise QueueError("a chain has more than 4 GiB")
            view = self._view("buffer", address, length)
            if flags & _WRITE:
                writable.append(view)
            elif writable:
                raise QueueError("a chain has a buffer to read after a buffer to write")
            else:
                readable.append(view)
        return Chain(head, tuple(readable), tuple(writable))

    def _walk(self, table: memoryview, index: int, entries: int) -> Iterator[tuple[int, int, int]]:
        nested = False
        for _ in range(self.size + 1):
            if index >= entries:
                raise QueueError(f"descriptor {index} is not in a table of {entries}")
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & _INDIRECT:
                if nested:
                    raise QueueError("an indirect table contains an indirect descriptor")
                table, entries = self._indirect_table(address, length, flags)
                nested, index = True, 0
                continue
            yield address, length, flags
            if not flags & _NEXT:
                return
            index = following
        raise QueueError(
            f"a chain loops, or is longer than its queue of {counted(self.size, 'entry')}"
        )

    def _indirect_table(self, address: int, length: int, flags: int) -> tuple[memoryview, int]:
        if not self.indirect:
            raise QueueError("a chain has an indirect descriptor, which was not negotiated")
        if flags & _NEXT:
            raise QueueError("an indirect descriptor has a next one")
        if length == 0 or length % 16:
            raise QueueError(f"an indirect table has {counted(length, 'byte')}")
        return self._view("indirect table", address, length), length // 16
