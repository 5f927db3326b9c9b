"""The virtio entropy device (virtio 1.2, section 5.4): gives the host's random bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from cerne.devices.virtio.queue import Queue

_QUEUE_SIZE = 8
_MOST_AT_ONCE = 64 * 1024


class Rng:
    """The device."""

    device_type = 4
    features = 0
    queue_sizes = (_QUEUE_SIZE,)

    def __init__(self) -> None:
        self._queues: Sequence[Queue] = ()
        self._notify: Callable[[Queue], None] = lambda queue: None

    def read_config(self, offset: int, size: int) -> int:
        """It has no configuration."""
        return 0

    def write_config(self, offset: int, size: int, value: int) -> None:
        """It has no configuration."""

    def activate(
        self, queues: Sequence[Queue], features: int, notify: Callable[[Queue], None]
    ) -> None:
        """The driver is ready."""
        self._queues = queues
        self._notify = notify

    def reset(self) -> None:
        """Forget the driver."""
        self._queues = ()

    def process(self, queue_index: int) -> None:
        """Fill what the driver offers."""
        queue = self._queues[queue_index]
        filled = False
        while True:
            chain = queue.pop()
            if chain is None:
                if queue.enable_notification():
                    continue
                break
            left = _MOST_AT_ONCE
            for view in chain.writable:
                part = min(len(view), left)
                view[:part] = os.urandom(part)
                left -= part
            queue.push(chain.head, _MOST_AT_ONCE - left)
            filled = True
        if filled:
            self._notify(queue)
