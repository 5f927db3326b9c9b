"""What every virtio device has in common, and what a transport needs of it (virtio 1.2, chapter 2).

A device's lock is held while it works on its queues, by whoever makes it work: the worker that
was kicked, the vCPU that resets it, or its host side. Between two calls a device holds no chain, so
that a reset or a snapshot finds nothing in flight.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from cerne.devices.state import PlainState
from cerne.devices.virtio.handover import HandedQueue
from cerne.devices.virtio.queue import Chain, Queue, QueueError
from cerne.errors import EngineError
from cerne.kvm.memory import GuestMemory

FEATURE_INDIRECT = 1 << 28
FEATURE_EVENT_INDEX = 1 << 29
FEATURE_VERSION_1 = 1 << 32
FEATURE_RING_RESET = 1 << 40

_TURN = 0.05
"""Seconds that a queue is served before others have their turn."""

Notify = Callable[[Queue], None]
"""Tells the driver of what was pushed to a queue, if it wants to know."""


class DeviceHost(Protocol):
    """What a device says to its transport by itself."""

    @property
    def memory(self) -> GuestMemory:
        """The guest's, for a backend that is to have it too."""

    def config_changed(self) -> None:
        """The device's configuration has changed; tells the driver."""

    def failed(self, error: QueueError) -> None:
        """The driver broke the rules; the device needs a reset."""

    def hand_over(self, queue_index: int) -> HandedQueue | None:
        """A queue as a backend is given it; None where the driver does not use it."""

    def come_back(self, queue: Queue) -> None:
        """There is more in a queue than may be served at once; the device is kicked again."""


class VirtioDevice:
    """A device behind a transport; the base of each kind."""

    device_type: int
    features: int = 0
    """What it offers, without what transport and queues bring themselves."""
    transport_features: int = (
        FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_VERSION_1 | FEATURE_RING_RESET
    )
    """What transport and queues offer; less where a backend serves the queues and has less."""
    queue_sizes: tuple[int, ...]
    handed_queues: Collection[int] = ()
    """Queues that a backend serves: their doorbells wake nobody here."""
    class_code: int = 0xFF0000
    """The PCI class, which some firmware looks at."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._host: DeviceHost | None = None
        self._queues: Sequence[Queue] = ()
        self._features = 0
        self._notify: Notify | None = None

    @property
    def active(self) -> bool:
        """Whether a driver is there."""
        return self._notify is not None

    def attach(self, host: DeviceHost) -> None:
        """Tell the device its transport, once."""
        self._host = host

    def read_config(self, offset: int, size: int) -> int:
        """Read the device's configuration; zero where there is none."""
        return int.from_bytes(self.config()[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write the device's configuration; dropped unless a device takes it."""

    def config(self) -> bytes:
        """The device's configuration as the driver reads it."""
        return b""

    def activate(self, queues: Sequence[Queue], features: int, notify: Notify) -> None:
        """The driver is ready; called with the lock held."""
        self._queues = queues
        self._features = features
        self._notify = notify

    def process(self, queue_index: int) -> None:
        """Serve a queue that was kicked; called with the lock held.

        Raises:
            QueueError: the driver broke the rules.
        """

    def queue_started(self, queue_index: int) -> None:
        """The driver uses a queue again that it had reset; called with the lock held."""

    def queue_stopped(self, queue_index: int) -> None:
        """The driver is about to reset a queue that is in use; called with the lock held."""

    def queue_rerouted(self, queue_index: int) -> None:
        """A queue that is in use has another interrupt; called with the lock held."""

    def reset(self) -> None:
        """The driver is gone; called with the lock held."""
        self._queues = ()
        self._features = 0
        self._notify = None

    def state(self) -> PlainState:
        """What the device knows that its configuration and its queues do not say.

        Each kind says so itself, also that it is nothing: state that is forgotten is lost.

        Raises:
            EngineError: this kind does not say.
        """
        raise EngineError(f"a {type(self).__name__} does not say what its state is")

    def restore(self, state: PlainState) -> None:
        """Take that back, after activation if it was active; raises DamagedError."""

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Hold the lock; what the driver did wrong goes to the transport."""
        with self.lock:
            try:
                yield
            except QueueError as error:
                if self._host is None:
                    raise
                self._host.failed(error)

    def _notify_driver(self, queue: Queue) -> None:
        if self._notify is not None:
            self._notify(queue)

    def _drain(self, queue: Queue, serve: Callable[[Chain], int | None]) -> None:
        """Serve all chains, and ask for a kick for the next one.

        `serve` says how many bytes it wrote, or None where it cannot go on now: the chain stays the
        next one, and the device comes back by itself.
        """
        queue.disable_notification()
        served, more = self._serve_some(queue, serve)
        if served:
            self._notify_driver(queue)
        if more and self._host is not None:
            self._host.come_back(queue)

    def _serve_some(self, queue: Queue, serve: Callable[[Chain], int | None]) -> tuple[bool, bool]:
        """Whether a chain was served, and whether there may be more than may be served at once.

        A driver may refill the queue all the time, and what a device writes may be the very ring
        that it looks at: whoever else waits for this thread has a turn in between.
        """
        served = False
        end = time.monotonic() + _TURN
        for _ in range(queue.size + 1):
            chain = queue.pop()
            if chain is None:
                if not queue.enable_notification():
                    return served, False
                continue
            written = serve(chain)
            if written is None:
                queue.put_back()
                return served, False
            queue.push(chain.head, written)
            served = True
            if time.monotonic() > end:
                break
        return served, True
