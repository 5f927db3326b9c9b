"""The entropy device (virtio 1.2, section 5.4): the host's random bytes for the guest."""

from __future__ import annotations

import os

from cerne.devices.state import PlainState
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.queue import Chain

LARGEST_READ = 65536
"""The most bytes for one chain, even for a longer one."""


class RngDevice(VirtioDevice):
    """Fills the driver's buffers from getrandom(2)."""

    device_type = 4
    queue_sizes = (64,)

    def process(self, queue_index: int) -> None:
        """Fill every offered chain."""
        self._drain(self._queues[queue_index], self._fill)

    def state(self) -> PlainState:
        """The state, which is empty."""
        return {}

    def _fill(self, chain: Chain) -> int:
        left = LARGEST_READ
        for view in chain.writable:
            length = min(len(view), left)
            view[:length] = os.urandom(length)
            left -= length
        return LARGEST_READ - left
