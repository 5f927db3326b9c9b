"""A driver of virtio devices behind PCI, in Python."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.devices.queue_driver import QueueDriver

from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.transport import VirtioPciTransport
from cerne.kvm.memory import GuestMemory

# Of all devices whose doorbells the test does not give: there may be thousands.
_BELL = os.eventfd(0, os.EFD_NONBLOCK)


@dataclass
class Routes:
    """Vectors that were triggered."""

    triggered: list[int] = field(default_factory=list)
    calls: dict[int, int] = field(default_factory=dict)
    """The eventfds of vectors, where the test wants them."""

    def set_route(self, vector: int, address: int, data: int, masked: bool) -> None:
        """Messages go nowhere here."""

    def trigger(self, vector: int) -> None:
        self.triggered.append(vector)

    def eventfd(self, vector: int) -> int:
        return self.calls.get(vector, _BELL)


class Guest:
    """A driver that brings a device up by its registers."""

    def __init__(
        self, device: VirtioDevice, memory: GuestMemory, doorbells: Sequence[int] = ()
    ) -> None:
        self.memory = memory
        self.routes = Routes()
        self._bells = doorbells or (_BELL,) * len(device.queue_sizes)
        self.transport = VirtioPciTransport(device, memory, self.routes, self._bells)
        self.queues: list[QueueDriver] = []

    def read(self, offset: int, size: int) -> int:
        return self.transport.read_bar(0, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.transport.write_bar(0, offset, size, value)

    def start(self, refuse: int = 0, last: int = 15) -> None:
        """Bring it up, without some features; to a status before it is ready, if a test wants."""
        self.write(20, 1, 1)
        self.write(20, 1, 3)
        for select in (0, 1):
            self.write(0, 4, select)
            self.write(8, 4, select)
            self.write(12, 4, self.read(4, 4) & ~(refuse >> 32 * select))
        self.write(20, 1, 11)
        assert self.read(20, 1) == 11
        base = 0x1000
        for index in range(self.read(18, 2)):
            driver = QueueDriver(self.memory, base, 16)
            base = (driver.end + 15) & ~15
            self.queues.append(driver)
            self.write(22, 2, index)
            self.write(24, 2, 16)
            self.write(26, 2, index + 1)
            for at, address in ((32, driver.descriptors), (40, driver.available)):
                self.write(at, 4, address)
            self.write(48, 8, driver.used)
            self.write(28, 2, 1)
            assert self.read(28, 2) == 1
        self.write(20, 1, last)

    def rung(self) -> int:
        """How often a device rang its own first doorbell since the last question."""
        try:
            return os.eventfd_read(self._bells[0])
        except BlockingIOError:
            return 0

    def kick(self, queue: int) -> None:
        if self.transport.device.served_apart:
            # The test is the thread that the doorbell would wake.
            self.transport.kick(queue)
        else:
            self.write(self.transport.notify_offset(queue), 2, queue)
