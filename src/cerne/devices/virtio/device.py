"""The base of every virtio device, and its interface to a transport (virtio 1.2, chapter 2).

The thread that works on a device's queues holds its lock: the worker after a kick, the vCPU at a
reset, or its host side. Between two calls a device holds no chain, so that a reset or a snapshot
finds no request in progress. A device that waits for the host, as a disk does, releases the lock
meanwhile and says that it is busy: its registers answer, and a reset waits for the request's end.
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
"""Seconds for one queue before others have their turn."""

After = Callable[[float, Callable[[], None]], None]
"""Calls a function after so many seconds, on the thread that serves the device."""

Notify = Callable[[Queue], None]
"""Notifies the driver of used buffers, if it wants notifications."""


class DeviceHost(Protocol):
    """The transport's interface for a device."""

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory, for a backend that needs it too."""

    def config_changed(self) -> None:
        """Notify the driver that the device's configuration has changed."""

    def failed(self, error: QueueError) -> None:
        """Stop the device until a reset, because the driver broke the rules."""

    def hand_over(self, queue_index: int) -> HandedQueue | None:
        """A queue for a backend; None if the driver does not use it."""

    def come_back(self, queue: Queue) -> None:
        """Kick the device again, because a queue has more than one turn may serve."""


class VirtioDevice:
    """A device behind a transport; the base of each kind."""

    device_type: int
    features: int = 0
    """The features of the device, without those of transport and queues."""
    transport_features: int = (
        FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_VERSION_1 | FEATURE_RING_RESET
    )
    """The features of transport and queues; a backend for the queues may have fewer."""
    queue_sizes: tuple[int, ...]
    handed_queues: Collection[int] = ()
    """Queues that a backend serves: their doorbells wake no thread here."""
    served_apart: bool = False
    """Whether only one thread of its own serves its queues: other threads ring its doorbells."""
    class_code: int = 0xFF0000
    """The PCI class, which some firmware reads."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.busy: Queue | None = None
        """The queue of which it serves a request without the lock."""
        self._interrupted = False
        self._host: DeviceHost | None = None
        self._queues: Sequence[Queue] = ()
        self._features = 0
        self._notify: Notify | None = None

    @property
    def active(self) -> bool:
        """Whether a driver is there."""
        return self._notify is not None

    def attach(self, host: DeviceHost) -> None:
        """Set the device's transport, once."""
        self._host = host

    def read_config(self, offset: int, size: int) -> int:
        """Read the device's configuration; zero after its end."""
        return int.from_bytes(self.config()[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write the device's configuration; ignored unless a device overrides this."""

    def config(self) -> bytes:
        """The device's configuration as the driver reads it."""
        return b""

    def activate(self, queues: Sequence[Queue], features: int, notify: Notify) -> None:
        """Called when the driver is ready, with the lock held."""
        self._queues = queues
        self._features = features
        self._notify = notify

    def process(self, queue_index: int) -> None:
        """Serve a queue that was kicked; called with the lock held.

        Raises:
            QueueError: the driver broke the rules.
        """

    def interrupt(self) -> None:
        """End the present turn after the present request; from any thread."""
        self._interrupted = True

    def queue_started(self, queue_index: int) -> None:
        """Called when the driver uses a queue again after its reset, with the lock held."""

    def queue_stopped(self, queue_index: int) -> None:
        """Called before the driver resets a queue in use, with the lock held."""

    def queue_rerouted(self, queue_index: int) -> None:
        """Called when a queue in use has another interrupt, with the lock held."""

    def reset(self) -> None:
        """Called when the driver is gone, with the lock held."""
        self._queues = ()
        self._features = 0
        self._notify = None

    def state(self) -> PlainState:
        """The device's state without its configuration and its queues.

        Each kind has to define it, even if it is empty, because forgotten state would be lost.

        Raises:
            EngineError: this kind does not define it.
        """
        raise EngineError(f"{type(self).__name__} does not define its state")

    def restore(self, state: PlainState) -> None:
        """Restore the state, after activation if it was active; raises DamagedError."""

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Hold the lock; errors of the driver go to the transport."""
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

    def _drain(self, queue: Queue, serve: Callable[[Chain], int | None], at_once: int = 1) -> None:
        """Serve all chains, and ask for a kick for the next one.

        `serve` returns how many bytes it wrote, or None if it has to stop now: the chain stays the
        next one, and the device continues later. The driver gets so many back `at_once`.
        """
        queue.disable_notification()
        served, more = self._serve_some(queue, serve, at_once)
        if served:
            self._notify_driver(queue)
        if more and self._host is not None:
            self._host.come_back(queue)

    def _serve_some(
        self, queue: Queue, serve: Callable[[Chain], int | None], at_once: int
    ) -> tuple[bool, bool]:
        """Serve chains for one turn; return whether any was served, and whether there may be more.

        A driver may refill the queue all the time, and a device may even write into the ring that
        it reads: so other work of this thread has a turn in between.
        """
        served = self._interrupted = False
        end = time.monotonic() + _TURN
        for _ in range(queue.size // at_once + 1):
            chains = queue.pop_some(at_once)
            if not chains:
                if not queue.enable_notification():
                    return served, False
                continue
            done = _served(chains, serve)
            if done:
                queue.push_all(done)
                served = True
            if len(done) < len(chains):
                queue.put_back(len(chains) - len(done))
                return served, False
            if self._interrupted or time.monotonic() > end:
                break
        return served, True


def _served(chains: Sequence[Chain], serve: Callable[[Chain], int | None]) -> list[tuple[int, int]]:
    """Serve chains until one has to stop; the heads of the others, and the bytes written."""
    done: list[tuple[int, int]] = []
    for chain in chains:
        written = serve(chain)
        if written is None:
            break
        done.append((chain.head, written))
    return done
