"""What a frame costs a network card of ours on its way to the guest, without guest and network.

A frame is read from a file in memory to a ring of 256 mergeable buffers of 1,536 bytes, as Linux
offers them. Room is made for a frame like the last one, and what is longer goes through a buffer of
the card's; beside it, what it would cost to make room for the largest frame always. CPU time.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence

from _measure import Sample, in_turn, print_table
from cerne.devices.state import PlainState
from cerne.devices.virtio.buffers import Views
from cerne.devices.virtio.net.device import QUEUE_SIZE, NetDevice
from cerne.devices.virtio.net.header import HEADER_SIZE, LARGEST_FRAME, Feature
from cerne.devices.virtio.queue import Queue
from cerne.kvm.memory import GuestAddress, GuestMemory

_RUNS = 7
_FRAMES = 400
_BUFFER = 1536
_DESCRIPTORS, _DRIVER, _DEVICE, _BUFFERS = 0x1000, 0x3000, 0x5000, 0x100000
_DESCRIPTOR = struct.Struct("<QIHH")
_WRITE = 2


class _Link:
    """Gives as many frames as it is asked to, one kind after the other."""

    features = 0
    wants_write = False

    def __init__(self, sizes: Sequence[int]) -> None:
        self._files = [os.memfd_create("frame") for _ in sizes]
        for file, size in zip(self._files, sizes, strict=True):
            os.ftruncate(file, HEADER_SIZE + size)
        self.left = 0
        self._given = 0

    def fileno(self) -> int:
        return self._files[0]

    def set_offloads(self, offloads: int) -> None:
        """Nothing is left undone."""

    def send(self, header: bytes, frame: Views) -> bool:
        return True

    def flush(self) -> bool:
        return True

    def read(self, buffers: Sequence[memoryview]) -> int:
        if self.left == 0:
            return 0
        self.left -= 1
        self._given += 1
        return os.preadv(self._files[self._given % len(self._files)], buffers, 0)

    def state(self) -> PlainState:
        return {}

    def restore(self, state: PlainState) -> None:
        """There is nothing."""

    def close(self) -> None:
        for file in self._files:
            os.close(file)


class _Card:
    """A card, its link, and a driver that gives each buffer back at once."""

    def __init__(self, memory: GuestMemory, sizes: Sequence[int], *, largest: bool) -> None:
        self._memory = memory
        self._largest = largest
        self._link = _Link(sizes)
        self._device = NetDevice(b"\x52\x54\0\0\0\1", self._link)
        queues = [Queue(memory, QUEUE_SIZE) for _ in range(3)]
        self._queue = queues[0]
        self._queue.descriptors, self._queue.driver = _DESCRIPTORS, _DRIVER
        self._queue.device = _DEVICE
        # The card before it used the same rings.
        memory.write(_DRIVER, bytes(_DEVICE - _DRIVER))
        memory.write(_DEVICE, bytes(6 + 8 * QUEUE_SIZE))
        self._queue.ready = True
        for index in range(QUEUE_SIZE):
            place = _BUFFERS + 4096 * index
            descriptor = _DESCRIPTOR.pack(place, _BUFFER, _WRITE, 0)
            memory.write(_DESCRIPTORS + 16 * index, descriptor)
            memory.write_u16(_DRIVER + 4 + 2 * index, index)
        self._device.activate(queues, Feature.MRG_RXBUF, lambda queue: None)

    def cost(self, at_once: int) -> float:
        """Seconds of CPU time a frame, of so many that come at once."""
        spent = 0.0
        for _ in range(_FRAMES // at_once):
            # As many are free as there are; a frame took its buffers in their order.
            free = (self._queue.used_index() + QUEUE_SIZE) & 0xFFFF
            self._memory.write_u16(_DRIVER + 2, free)
            self._link.left = at_once
            if self._largest:
                self._device._guess = HEADER_SIZE + LARGEST_FRAME
            began = time.process_time()
            self._device.process(0)
            spent += time.process_time() - began
        return spent / (_FRAMES // at_once * at_once)


def main() -> None:
    """Print the table."""
    rows = []
    kinds = {
        "60 bytes": (60,),
        "1,514 bytes": (1514,),
        "64 KiB": (65536,),
        "60 bytes and 64 KiB in turn": (60, 65536),
    }
    with GuestMemory.anonymous([(GuestAddress(0), 16 << 20)]) as memory:
        for what, sizes in kinds.items():
            for at_once in (1, 4):
                samples = _measured(memory, sizes, at_once)
                rows.append((what, str(at_once), *(each.text(1e6) for each in samples)))
    header = ("frames", "at once", "as the last one, us", "for the largest, us")
    print_table("Frames into mergeable buffers", header, rows)


def _measured(memory: GuestMemory, sizes: Sequence[int], at_once: int) -> tuple[Sample, ...]:
    ours = _Card(memory, sizes, largest=False)
    results = in_turn(_RUNS, lambda: ours.cost(at_once))
    other = _Card(memory, sizes, largest=True)
    # Each has the rings from their beginning: they are measured one after the other.
    return results + in_turn(_RUNS, lambda: other.cost(at_once))


if __name__ == "__main__":
    main()
