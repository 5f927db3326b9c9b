"""A network card whose frames the host's kernel moves between its queues and a tap (vhost-net).

Only its control queue is served here. The kernel serves the other queues while the machine runs;
while the machine is paused they are stopped, so that memory and state are consistent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from cerne.devices.virtio.device import (
    FEATURE_EVENT_INDEX,
    FEATURE_INDIRECT,
    FEATURE_RING_RESET,
    FEATURE_VERSION_1,
    Notify,
)
from cerne.devices.virtio.handover import HandedQueue
from cerne.devices.virtio.net.device import NetDevice
from cerne.devices.virtio.net.header import Feature
from cerne.devices.virtio.net.tap import TapLink
from cerne.devices.virtio.queue import Queue
from cerne.errors import HostError, KvmError
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vhost import VhostNet

_RECEIVE, _TRANSMIT = 0, 1
_RING_FEATURES = FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_VERSION_1


class KernelBackend:
    """The kernel as a `QueueBackend`, over a vhost device and a tap's descriptor."""

    def __init__(self, vhost: VhostNet, tap: int) -> None:
        """Take the vhost device over, for this process.

        Raises:
            KvmError: the kernel refuses.
            HostError: it does not speak virtio 1.
        """
        vhost.set_owner()
        self.features = vhost.get_features()
        if not self.features & FEATURE_VERSION_1:
            raise HostError("the vhost-net of this host does not speak virtio 1")
        self._vhost = vhost
        self._tap = tap
        self._memory: GuestMemory | None = None

    def begin(self, features: int, memory: GuestMemory) -> None:
        """Set the negotiated features and the guest's memory."""
        shared = features & self.features & (_RING_FEATURES | Feature.MRG_RXBUF)
        self._vhost.set_features(shared)
        self._vhost.set_mem_table(memory)
        self._memory = memory

    def start(self, queue: HandedQueue) -> None:
        """Serve a queue (see `QueueBackend.start`)."""
        assert self._memory is not None
        vhost, index = self._vhost, queue.number
        vhost.set_vring_num(index, queue.size)
        vhost.set_vring_base(index, queue.next_available)
        vhost.set_vring_addr(index, self._memory, queue.descriptors, queue.driver, queue.device)
        vhost.set_vring_kick(index, queue.kick)
        vhost.set_vring_call(index, queue.call)
        vhost.net_set_backend(index, self._tap)

    def stop(self, index: int) -> int:
        """Stop a queue (see `QueueBackend.stop`)."""
        self._vhost.net_set_backend(index, None)
        return self._vhost.get_vring_base(index)

    def set_call(self, index: int, call: int) -> None:
        """Interrupt by another eventfd (see `QueueBackend.set_call`)."""
        self._vhost.set_vring_call(index, call)

    def close(self) -> None:
        """Close the vhost device."""
        self._vhost.close()


class KernelNetDevice(NetDevice):
    """The card. Call `resume` when its machine runs, and `pause` before its state is read.

    If the kernel refuses a queue, the card's link is down.
    """

    handed_queues = (_RECEIVE, _TRANSMIT)

    def __init__(
        self,
        mac: bytes,
        link: TapLink,
        backend: KernelBackend,
        on_change: Callable[[], None] = lambda: None,
        *,
        mtu: int | None = None,
    ) -> None:
        super().__init__(mac, link, on_change, mtu=mtu)
        self._backend = backend
        self._paused = True
        self._served: set[int] = set()
        self.transport_features = backend.features & _RING_FEATURES | FEATURE_RING_RESET
        if not backend.features & Feature.MRG_RXBUF:
            self.features &= ~Feature.MRG_RXBUF

    @property
    def wants_read(self) -> bool:
        """False, because the kernel moves the frames."""
        return False

    @property
    def wants_write(self) -> bool:
        """False, because the kernel moves the frames."""
        return False

    def activate(self, queues: Sequence[Queue], features: int, notify: Notify) -> None:
        """Called when the driver is ready: hand the queues over, if the machine runs."""
        super().activate(queues, features, notify)
        if not self._paused:
            self._hand_over()

    def queue_started(self, queue_index: int) -> None:
        """Hand a queue over again."""
        if not self._paused:
            self._ask(lambda: self._start(queue_index))

    def queue_stopped(self, queue_index: int) -> None:
        """Take a queue back."""
        self._ask(lambda: self._stop(queue_index))

    def queue_rerouted(self, queue_index: int) -> None:
        """Tell the kernel of the queue's other eventfd."""
        handed = self._host.hand_over(queue_index) if self._host is not None else None
        if handed is not None and queue_index in self._served:
            self._ask(lambda: self._backend.set_call(queue_index, handed.call))

    def reset(self) -> None:
        """Called when the driver is gone: take all queues back."""
        self._take_back()
        super().reset()

    def pause(self) -> None:
        """Take the queues back while the machine is paused."""
        with self.lock:
            self._paused = True
            self._take_back()

    def resume(self) -> None:
        """Let the kernel continue."""
        with self.lock:
            if self._paused:
                self._paused = False
                self._hand_over()

    def close(self) -> None:
        """Close the kernel's device."""
        self._backend.close()

    def _hand_over(self) -> None:
        host = self._host
        if host is None or not self.active or not self._link_up:
            return
        self._ask(lambda: self._backend.begin(self._features, host.memory))
        for index in self.handed_queues:
            self._ask(partial(self._start, index))

    def _take_back(self) -> None:
        for index in self.handed_queues:
            self._ask(partial(self._stop, index))

    def _start(self, index: int) -> None:
        handed = self._host.hand_over(index) if self._host is not None else None
        if index not in self.handed_queues or handed is None or not self._link_up:
            return
        self._backend.start(handed)
        self._served.add(index)
        # A kick may be lost, and used chains may have caused no interrupt.
        os.eventfd_write(handed.kick, 1)
        os.eventfd_write(handed.call, 1)

    def _stop(self, index: int) -> None:
        if index in self._served:
            self._served.remove(index)
            self._queues[index].take_back(self._backend.stop(index))

    def _ask(self, action: Callable[[], None]) -> None:
        try:
            action()
        except KvmError:
            self._lose_link()
