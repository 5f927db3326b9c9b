"""Queues that a backend serves: another process (vhost-user) or the host's kernel (vhost).

A queue that is handed over is used by its backend alone: the guest's doorbell wakes it, and it
interrupts the guest, both by eventfds that the kernel connects, so that nobody here is woken. A
backend that gives a queue back says how far it got.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cerne.devices.virtio.queue import Queue


class HandedQueue(NamedTuple):
    """All that a backend needs of one queue. Descriptors stay the transport's."""

    number: int
    size: int
    """Entries."""
    descriptors: int
    """Guest addresses, as those of the two rings: within memory, and aligned."""
    driver: int
    device: int
    next_available: int
    """The index in the driver's ring at which the backend goes on."""
    kick: int
    """The eventfd that the guest's doorbell writes."""
    call: int
    """The eventfd that interrupts the guest."""

    @classmethod
    def of(cls, index: int, queue: Queue, kick: int, call: int) -> HandedQueue:
        """A queue that is ready, as it is now."""
        return cls(
            index,
            queue.size,
            queue.descriptors,
            queue.driver,
            queue.device,
            queue.next_available,
            kick,
            call,
        )


class QueueBackend(Protocol):
    """Whoever serves queues of one device, over the guest's memory, which it has been given.

    Its errors are of `CerneError`.
    """

    def start(self, queue: HandedQueue) -> None:
        """Serve a queue from now on."""

    def stop(self, index: int) -> int:
        """Give a queue back, and touch it no more; the index at which it would have gone on."""

    def set_call(self, index: int, call: int) -> None:
        """Interrupt the guest by another eventfd, for a queue that is being served."""
