"""Memory that is plugged while a guest runs (virtio 1.2, section 5.15).

The device has a range of guest addresses, in blocks. The host sets how much of it the guest should
have; the driver plugs blocks until it has that much, or unplugs those that it can free. Each
request is checked: a guest never gets more than was requested for it, and has no access to a block
that it has not plugged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.buffers import gather, scatter, size_of, split
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.queue import Chain, QueueError
from cerne.errors import HostError
from cerne.kvm.memory import BLOCK_SIZE, GuestMemory

FEATURE_UNPLUGGED_INACCESSIBLE = 1 << 1

_CONFIG = struct.Struct("<QH6xQQQQQ")
_REQUEST = struct.Struct("<H6xQH6x")
_RESPONSE = struct.Struct("<H6xH")
_LARGEST = (1 << 52) - 1


class Request(IntEnum):
    """The kinds of requests."""

    PLUG = 0
    UNPLUG = 1
    UNPLUG_ALL = 2
    STATE = 3


class Answer(IntEnum):
    """The kinds of answers."""

    ACK = 0
    NACK = 1
    """The host does not want it."""
    BUSY = 2
    ERROR = 3
    """The request is not valid."""


class BlockState(IntEnum):
    """The state of the blocks of a range."""

    PLUGGED = 0
    UNPLUGGED = 1
    MIXED = 2


class MemDevice(VirtioDevice):
    """Plugs blocks of a memory with room (`GuestMemory.reserve`); sizes are in bytes.

    `plug` and `unplug` give the guest a block of this number, and take it away. `on_change` is
    called after each change of what is plugged. All of this is on the thread that serves the queue.
    """

    device_type = 24
    features = FEATURE_UNPLUGGED_INACCESSIBLE
    queue_sizes = (128,)

    def __init__(
        self,
        memory: GuestMemory,
        plug: Callable[[int], None],
        unplug: Callable[[int], None],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._memory = memory
        self._plug = plug
        self._unplug = unplug
        self._on_change = on_change
        self._requested = 0

    @property
    def requested(self) -> int:
        """What the guest should have of its range."""
        return self._requested

    @property
    def plugged(self) -> int:
        """What the guest has of its range."""
        return len(self._memory.plugged) * BLOCK_SIZE

    def request(self, size: int) -> None:
        """Ask the driver to have so much, in whole blocks."""
        with self.working():
            if size != self._requested:
                self._requested = size
                if self._host is not None:
                    self._host.config_changed()

    def config(self) -> bytes:
        """The range, how much of it the guest should have, and how much it has."""
        start, size = self._memory.room
        # All of the range is usable: blocks need no order.
        return _CONFIG.pack(BLOCK_SIZE, 0, start, size, size, self.plugged, self._requested)

    def process(self, queue_index: int) -> None:
        """Answer the driver's requests."""
        self._drain(self._queues[queue_index], self._serve)

    def state(self) -> PlainState:
        """What the guest should have; what it has is a part of its memory."""
        return {"requested": self._requested}

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        self._requested = SavedState("a memory device", state).integer("requested", _LARGEST)

    def _serve(self, chain: Chain) -> int:
        if chain.readable_size < _REQUEST.size or size_of(chain.writable) < _RESPONSE.size:
            raise QueueError("a request for memory is too short")
        kind, address, count = _REQUEST.unpack(gather(split(chain.readable, _REQUEST.size)[0]))
        answer, state = self._answer(kind, address, count)
        return scatter(chain.writable, _RESPONSE.pack(answer, state))

    def _answer(self, kind: int, address: int, count: int) -> tuple[Answer, int]:
        if kind == Request.UNPLUG_ALL:
            return self._change(self._unplug, sorted(self._memory.plugged)), 0
        blocks = self._blocks(address, count)
        if blocks is None or kind not in [*Request]:
            return Answer.ERROR, 0
        plugged = self._memory.plugged & set(blocks)
        if kind == Request.STATE:
            return Answer.ACK, _state(len(plugged), count)
        if kind == Request.PLUG:
            if plugged:
                return Answer.ERROR, 0
            if self.plugged + count * BLOCK_SIZE > self._requested:
                return Answer.NACK, 0
            return self._change(self._plug, blocks), 0
        if len(plugged) < count:
            return Answer.ERROR, 0
        return self._change(self._unplug, blocks), 0

    def _blocks(self, address: int, count: int) -> range | None:
        """The blocks of a range of addresses, if it is one of whole blocks of the device."""
        start, size = self._memory.room
        first, rest = divmod(address - start, BLOCK_SIZE)
        if rest or count < 1 or not 0 <= first <= size // BLOCK_SIZE - count:
            return None
        return range(first, first + count)

    def _change(self, change: Callable[[int], None], blocks: range | list[int]) -> Answer:
        """Plug or unplug blocks: all of them, or none."""
        done: list[int] = []
        undo = self._unplug if change == self._plug else self._plug
        try:
            for block in blocks:
                change(block)
                done.append(block)
        except HostError:
            for block in done:
                undo(block)
            return Answer.BUSY
        self._on_change()
        return Answer.ACK


def _state(plugged: int, count: int) -> BlockState:
    if plugged == count:
        return BlockState.PLUGGED
    return BlockState.MIXED if plugged else BlockState.UNPLUGGED
