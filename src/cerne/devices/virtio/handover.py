"""Queues that a backend serves: another process (vhost-user) or the host's kernel (vhost).

Only the backend uses a queue that is handed over: the guest's doorbell wakes it, and it interrupts
the guest, both by eventfds that the kernel connects, so that no thread here is woken. A backend
that stops a queue returns its position.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cerne.devices.virtio.queue import Queue


class HandedQueue(NamedTuple):
    """All that a backend needs to know about one queue. The transport owns the descriptors."""

    number: int
    size: int
    """Entries."""
    descriptors: int
    """Guest addresses of the table and the two rings: in memory, and aligned."""
    driver: int
    device: int
    next_available: int
    """The index in the driver's ring at which the backend continues."""
    kick: int
    """The eventfd that the guest's doorbell writes."""
    call: int
    """The eventfd that interrupts the guest."""

    @classmethod
    def of(cls, index: int, queue: Queue, kick: int, call: int) -> HandedQueue:
        """The present state of a ready queue."""
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
    """A backend that serves queues of one device, over the guest's memory.

    Its errors are `CerneError`s.
    """

    def start(self, queue: HandedQueue) -> None:
        """Serve a queue from now on."""

    def stop(self, index: int) -> int:
        """Stop a queue; return the index at which the backend would continue."""

    def set_call(self, index: int, call: int) -> None:
        """Interrupt the guest by another eventfd, for a running queue."""
