"""Virtio devices whose queues a vhost-user backend serves.

A backend may end, and another may replace it, at any time: the driver's requests wait in their
rings meanwhile. The new backend gets the whole configuration again, and finds the unanswered
requests in the notes of the old one (the inflight file), or, without notes, in the rings.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence

from cerne.devices.state import PlainState
from cerne.devices.vhost_user.front_end import TURN, FrontEnd
from cerne.devices.vhost_user.messages import BackendError, Inflight
from cerne.devices.virtio.device import (
    FEATURE_EVENT_INDEX,
    FEATURE_INDIRECT,
    FEATURE_RING_RESET,
    FEATURE_VERSION_1,
    Notify,
    VirtioDevice,
)
from cerne.devices.virtio.queue import Queue
from cerne.errors import InputError

QUEUE_SIZE = 128
LONGEST_TAG = 36

_RING_FEATURES = FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_VERSION_1


class VhostUserDevice(VirtioDevice):
    """The base of each kind. `link` is a connected socket, which the device takes over.

    When the backend is lost, `on_loss` is called with the device's lock held, from any thread; the
    owner then calls `reconnect` with another backend.
    """

    known_features: int
    """Features of the kind that need no work of ours."""

    def __init__(
        self,
        link: socket.socket,
        queues: int,
        patience: float = TURN,
    ) -> None:
        """Connect to the backend, which has `patience` seconds to answer.

        Raises:
            BackendError: it does not answer, or is not usable.
        """
        super().__init__()
        self.link = link
        self.on_loss: Callable[[BackendError], None] = lambda error: None
        self._notes: tuple[Inflight, int] | None = None
        front = FrontEnd(link, patience)
        self._front: FrontEnd | None = front
        if not front.features & FEATURE_VERSION_1:
            raise BackendError("the backend does not speak virtio 1")
        count = self.queue_count(queues, front)
        self.queue_sizes = (QUEUE_SIZE,) * count
        self.handed_queues = range(count)
        self._needed = front.features & (self.known_features | _RING_FEATURES)
        self.features = front.features & self.known_features
        # Resetting a ring stops it, which every backend supports.
        self.transport_features = front.features & _RING_FEATURES | FEATURE_RING_RESET
        self.learn(front)

    @property
    def connected(self) -> bool:
        """Whether there is a usable backend."""
        return self._front is not None

    def queue_count(self, wanted: int, front: FrontEnd) -> int:
        """How many queues the device has with this backend; raises BackendError for none."""
        return wanted

    def learn(self, front: FrontEnd) -> None:
        """Ask the backend for what the kind of device needs.

        Raises:
            BackendError: the answer is not valid, or does not fit the former backend.
        """

    def presence_changed(self) -> None:
        """The backend has gone, or has been replaced; called with the lock held."""

    def check(self) -> None:
        """Check whether the backend is still there, after data has come on the link."""
        with self.lock:
            if self._front is None:
                return
            try:
                self.link.setblocking(False)
                said = self.link.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            # While we hold the lock, no request is pending.
            self._lose(
                BackendError(
                    "the backend sent a message without a request"
                    if said
                    else "the backend closed the connection"
                )
            )

    def reconnect(self, link: socket.socket) -> None:
        """Continue with another backend, on a connected socket that the device takes over.

        Raises:
            BackendError: it is not usable; the socket is closed. A later failure is a loss of the
                backend.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(link.close)
            front = FrontEnd(link)
            missing = self._needed & ~front.features
            if missing:
                raise BackendError(f"the new backend lacks the features {missing:#x} of the old")
            self.learn(front)
            undo.pop_all()
        with self.working():
            self.link.close()
            self.link, self._front = link, front
            if self.active:
                self._ask(lambda front: self._begin(front, again=True))
            self.presence_changed()

    def activate(self, queues: Sequence[Queue], features: int, notify: Notify) -> None:
        """Hand the queues over."""
        super().activate(queues, features, notify)
        self._ask(lambda front: self._begin(front, again=False))

    def queue_started(self, queue_index: int) -> None:
        """Hand a queue over again."""
        self._ask(lambda front: self._start(front, queue_index, again=False))

    def queue_stopped(self, queue_index: int) -> None:
        """Take a queue back."""
        self._ask(lambda front: self._stop(front, queue_index))

    def queue_rerouted(self, queue_index: int) -> None:
        """Tell the backend of the queue's other eventfd."""
        handed = self._host.hand_over(queue_index) if self._host is not None else None
        if handed is not None:
            self._ask(lambda front: front.set_call(queue_index, handed.call))

    def reset(self) -> None:
        """Take all queues back."""
        if self.active:
            self._ask(self._end)
        self._forget_notes()
        super().reset()

    def state(self) -> PlainState:
        """The state, which is empty."""
        return {}

    def close(self) -> None:
        """Close the connection to the backend."""
        with self.lock:
            self._front = None
            self._forget_notes()
            self.link.close()

    def _ask(self, action: Callable[[FrontEnd], None]) -> None:
        if self._front is None:
            return
        try:
            with self._front.turn():
                action(self._front)
        except BackendError as error:
            self._lose(error)

    def _lose(self, error: BackendError) -> None:
        self._front = None
        # This wakes the waiting thread; the socket is closed when there is another one.
        with contextlib.suppress(OSError):
            self.link.shutdown(socket.SHUT_RDWR)
        self.presence_changed()
        self.on_loss(error)

    def _begin(self, front: FrontEnd, *, again: bool) -> None:
        front.set_features(self._features)
        if self._notes is None:
            self._notes = front.new_inflight(len(self.queue_sizes), QUEUE_SIZE)
        if self._notes is not None:
            front.set_inflight(*self._notes)
        if self._host is None:
            return
        front.set_memory(self._host.memory)
        for index in self.handed_queues:
            self._start(front, index, again=again)

    def _start(self, front: FrontEnd, index: int, *, again: bool) -> None:
        queue = self._queues[index]
        if self._host is None or not queue.ready:
            return
        if again and self._notes is None:
            queue.offer_again()
        elif again:
            queue.take_back(queue.used_index())
        handed = self._host.hand_over(index)
        if handed is None:
            return
        front.start(handed)
        if again:
            # Notifications from and to the old one may be lost.
            os.eventfd_write(handed.kick, 1)
            os.eventfd_write(handed.call, 1)

    def _stop(self, front: FrontEnd, index: int) -> None:
        if self._queues[index].ready:
            self._queues[index].take_back(front.stop(index))

    def _end(self, front: FrontEnd) -> None:
        for index in self.handed_queues:
            self._stop(front, index)
        front.reset()

    def _forget_notes(self) -> None:
        if self._notes is not None:
            os.close(self._notes[1])
        self._notes = None


class VhostUserBlock(VhostUserDevice):
    """A disk (virtio 1.2, section 5.2) with the backend's configuration."""

    device_type = 2
    class_code = 0x018000
    # Sizes, segments, geometry, read-only, block size, flush, topology, queues, discard and zeroes.
    known_features = 0b0111_0110_0111_0110

    _SIZE = 60
    _QUEUES_OFFSET = 34

    def __init__(
        self,
        link: socket.socket,
        queues: int,
        patience: float = TURN,
    ) -> None:
        self._config = b""
        super().__init__(link, queues, patience)

    def queue_count(self, wanted: int, front: FrontEnd) -> int:
        """As many as are wanted, at most the backend's number."""
        most = front.most_queues if front.most_queues is not None else 1
        if most < 1:
            raise BackendError("the backend serves no queue")
        return min(wanted, most)

    def learn(self, front: FrontEnd) -> None:
        """Read the configuration; another backend must have the same."""
        told = bytearray(front.config(self._SIZE))
        struct.pack_into("<H", told, self._QUEUES_OFFSET, len(self.queue_sizes))
        if self._config and self._config != told:
            raise BackendError("the new backend has another disk than the old")
        self._config = bytes(told)

    def config(self) -> bytes:
        """Capacity and limits."""
        return self._config


class VhostUserFs(VhostUserDevice):
    """A directory of the host (virtio 1.2, section 5.11), which a guest mounts by its tag."""

    device_type = 26
    class_code = 0x018000
    known_features = 0

    _REQUEST_QUEUES = 1

    def __init__(
        self,
        link: socket.socket,
        tag: str,
        patience: float = TURN,
    ) -> None:
        encoded = tag.encode()
        if not 0 < len(encoded) <= LONGEST_TAG:
            raise InputError(f"the tag {tag!r} does not have 1 to {LONGEST_TAG} bytes")
        self._tag = encoded
        queues = 1 + self._REQUEST_QUEUES
        super().__init__(link, queues, patience)

    def config(self) -> bytes:
        """The tag, and the number of queues without the urgent one."""
        return self._tag.ljust(LONGEST_TAG, b"\0") + struct.pack("<I", self._REQUEST_QUEUES)


class VhostUserNet(VhostUserDevice):
    """A network card (virtio 1.2, section 5.1), with one pair of queues."""

    device_type = 1
    class_code = 0x020000
    # Checksums, segmentation in both directions and mergeable buffers; status and address are ours.
    known_features = 0b1111_1111_1000_0011

    _ADDRESS = 1 << 5
    _STATUS = 1 << 16
    _LINK_UP = 1

    def __init__(
        self,
        link: socket.socket,
        mac: bytes,
        patience: float = TURN,
    ) -> None:
        if len(mac) != 6 or mac[0] & 1:
            raise InputError(f"{mac.hex(':')} is not the address of a network card")
        self._mac = mac
        super().__init__(link, 2, patience)
        self.features |= self._ADDRESS | self._STATUS

    def config(self) -> bytes:
        """The address, and the link, which is up while there is a backend."""
        return self._mac + int(self.connected).to_bytes(2, "little")

    def presence_changed(self) -> None:
        """Tell the driver of the link."""
        if self._host is not None:
            self._host.config_changed()
