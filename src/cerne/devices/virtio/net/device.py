"""The network card (virtio 1.2, section 5.1): moves frames between a link and its driver.

Frames are read into the driver's buffers and written from them. The size of the next frame is
unknown before it is read: the card makes room for one like the last, and the rest of a longer one
goes through a buffer of the card and is copied. A frame that has to wait for a limit stays in the
driver's queue, or in the link.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple

from cerne.devices.limiter import Limiter
from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.buffers import Views, gather, scatter, size_of, split
from cerne.devices.virtio.device import After, Notify, VirtioDevice
from cerne.devices.virtio.net.control import LARGEST_COMMAND, Control
from cerne.devices.virtio.net.header import (
    GUEST_OFFLOADS,
    HEADER_SIZE,
    LARGEST_FRAME,
    NO_OFFLOAD,
    SMALLEST_FRAME,
    Feature,
    checked_header,
)
from cerne.devices.virtio.net.link import Link, LinkLostError
from cerne.devices.virtio.net.room import Room
from cerne.devices.virtio.queue import Chain, Queue, QueueError
from cerne.errors import DamagedError, InputError

QUEUE_SIZE = 256
_RECEIVE: Final = 0
_TRANSMIT: Final = 1
_CONTROL: Final = 2
_CONTROL_SIZE = 64
_LINK_UP = 1
_FEATURES = (
    Feature.MAC
    | Feature.STATUS
    | Feature.MRG_RXBUF
    | Feature.CTRL_VQ
    | Feature.CTRL_RX
    | Feature.CTRL_VLAN
    | Feature.CTRL_MAC_ADDR
)
_CONFIG = struct.Struct("<6sHHH")
_BROADCAST = b"\xff" * 6
_RARP = b"\x80\x35"
_REVERSE_REQUEST = struct.Struct("!HHBBH6s4s6s4s")
_PADDING = bytes(60 - SMALLEST_FRAME - _REVERSE_REQUEST.size)
# No frame is longer; one byte more shows that a frame was cut off.
_SPILL_SIZE = HEADER_SIZE + LARGEST_FRAME + 1
# Below readv(2)'s 1024, so that the longest chain and the card's own buffer still fit.
_MOST_VIEWS = 1024 - 1 - (QUEUE_SIZE + 1)
# Frames of the guest's that it gets back together.
_AT_ONCE = 16
# Frames in one turn, between which nothing else is served.
_TURN = 64


class NetLimits(NamedTuple):
    """The limits of a machine's cards, which share them; first as the queues they are for."""

    receive: Limiter
    send: Limiter
    after: After


class NetDevice(VirtioDevice):
    """A network card. Call `receive` when its link is readable, `flush` when it is writable.

    When its link's other end has gone, the link is down and the guest's frames are dropped, as on
    an unplugged cable. `on_change` is called after changes of `wants_read` and `wants_write`, from
    any thread; it must not wait.
    """

    device_type = 1
    class_code = 0x020000
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE, _CONTROL_SIZE)

    def __init__(
        self,
        mac: bytes,
        link: Link,
        on_change: Callable[[], None] = lambda: None,
        *,
        mtu: int | None = None,
        limits: NetLimits | None = None,
    ) -> None:
        """Make a card with this address; `mtu` is for a network with an unusual size of frames.

        Raises:
            InputError: the address is not valid for a card.
        """
        super().__init__()
        if len(mac) != 6 or mac[0] & 1:
            raise InputError(f"{mac.hex(':')} is not the address of a network card")
        self.link = link
        self.features = _FEATURES | link.features
        if link.features & GUEST_OFFLOADS:
            self.features |= Feature.CTRL_GUEST_OFFLOADS
        if mtu is not None:
            self.features |= Feature.MTU
        self._own_mac = self._mac = mac
        self._limits = limits
        self.received = 0
        """Bytes of the frames that it gave to the guest."""
        self.sent = 0
        """Bytes of the frames that the guest sent."""
        self._waiting_for_limit: set[int] = set()
        self._mtu = mtu or 0
        self._link_up = True
        self._offloads = 0
        self._on_change = on_change
        self._wanted = (True, False)
        self._starved = False
        self._waiting = b""
        self._spill = memoryview(bytearray(_SPILL_SIZE))
        self._guess = HEADER_SIZE + SMALLEST_FRAME

    @property
    def link_up(self) -> bool:
        """Whether its link's other end is there."""
        return self._link_up

    @property
    def wants_write(self) -> bool:
        """Whether a frame waits until the link has room; then call `flush`."""
        return self._link_up and self.link.wants_write

    @property
    def wants_read(self) -> bool:
        """Whether another frame has room; False if the guest has no buffers."""
        return self._link_up and not self._starved and _RECEIVE not in self._waiting_for_limit

    def config(self) -> bytes:
        """The address, the link's state, and the largest packet."""
        return _CONFIG.pack(self._mac, int(self._link_up), 0, self._mtu)

    def activate(self, queues: Sequence[Queue], features: int, notify: Notify) -> None:
        """Called when the driver is ready: set the link's offloads to the negotiated ones."""
        super().activate(queues, features, notify)
        self._set_offloads(features & GUEST_OFFLOADS)

    def reset(self) -> None:
        """Called when the driver is gone: forget its settings."""
        super().reset()
        self._mac = self._own_mac
        self._waiting = b""
        self._starved = False
        self._set_offloads(0)
        self._tell_changes()

    def receive(self) -> None:
        """Give the guest the frames that the link has."""
        with self.working():
            self._receive()
            self._tell_changes()

    def flush(self) -> None:
        """Send the waiting frame, and then the guest's queued frames."""
        with self.working():
            if self._flush_link() and self.active and self._queues[_TRANSMIT].ready:
                self.process(_TRANSMIT)
            self._tell_changes()

    def limit_changed(self) -> None:
        """Serve the queues that wait for a limit."""
        with self.working():
            for queue_index in list(self._waiting_for_limit):
                self._wait_ends(queue_index)

    def announce(self) -> None:
        """Announce the card's address to a new link, by a frame of the guest (RARP, RFC 903).

        The guest does not know of the new link and may send nothing for long; until it sends a
        frame, passt sends nothing to it, and a bridge sends its frames to all ports.
        """
        with self.working():
            if not self.active:
                return
            request = _REVERSE_REQUEST.pack(1, 0x0800, 6, 4, 3, self._mac, b"", self._mac, b"")
            frame = _BROADCAST + self._mac + _RARP + request + _PADDING
            self._send(NO_OFFLOAD, (memoryview(frame),))
            self._tell_changes()

    def process(self, queue_index: int) -> None:
        """Send the guest's frames, fill its buffers, or execute its commands."""
        queue = self._queues[queue_index]
        if queue_index == _TRANSMIT:
            self._drain(queue, self._transmit, _AT_ONCE)
        elif queue_index == _CONTROL:
            self._drain(queue, self._obey)
        else:
            # The card asks for kicks again when the driver has no buffers.
            queue.disable_notification()
            self._starved = False
            self._receive()
        self._tell_changes()

    def state(self) -> PlainState:
        """The guest's settings, and a frame that waits for it.

        The link is made again, and data in transit is lost, because another link would not
        understand the rest of a frame.
        """
        return {
            "mac": None if self._mac == self._own_mac else self._mac.hex(),
            "offloads": self._offloads,
            "waiting": self._waiting.hex(),
        }

    def restore(self, state: PlainState) -> None:
        """Restore them; raises DamagedError if they are not valid."""
        saved = SavedState("a network card", state)
        self._mac = self._own_mac if saved.is_none("mac") else saved.data("mac", 6)
        offloads = saved.integer("offloads", int(GUEST_OFFLOADS))
        self._waiting = saved.data("waiting", _SPILL_SIZE)
        if len(self._mac) != 6 or offloads & ~self._features:
            raise DamagedError("the saved state belongs to another network card")
        self._set_offloads(offloads)

    def _set_mac(self, mac: bytes) -> None:
        self._mac = mac

    def _set_offloads(self, offloads: int) -> None:
        self._offloads = offloads
        if self._link_up:
            try:
                self.link.set_offloads(offloads)
            except LinkLostError:
                self._lose_link()

    def _tell_changes(self) -> None:
        wanted = (self.wants_read, self.wants_write)
        if wanted != self._wanted:
            self._wanted = wanted
            self._on_change()

    def _obey(self, chain: Chain) -> int:
        if not chain.writable_size:
            raise QueueError("a command to a network card has no room for an answer")
        control = Control(self._features, self._set_mac, self._set_offloads)
        short = chain.readable_size <= LARGEST_COMMAND
        done = short and control.obey(gather(chain.readable))
        return scatter(chain.writable, b"\0" if done else b"\1")

    def _transmit(self, chain: Chain) -> int | None:
        if not self._link_up:
            return 0
        if self._has_to_wait(_TRANSMIT):
            return None
        header, frame = split(chain.readable, HEADER_SIZE)
        size = size_of(frame)
        checked = checked_header(gather(header), size, self._features)
        if checked is not None and not self._send(checked, frame):
            return None
        self.sent += size
        self._charge(_TRANSMIT, size)
        return 0

    def _send(self, header: bytes, frame: Views) -> bool:
        """Send a frame; return False if the link takes none now."""
        try:
            return self.link.send(header, frame)
        except LinkLostError:
            self._lose_link()
        return True

    def _has_to_wait(self, queue_index: Literal[0, 1]) -> bool:
        """Whether a limit delays the next frame; if so, the queue is served later.

        A frame is counted after it has moved, because its size, or whether the link takes it, is
        unknown before.
        """
        limits = self._limits
        if limits is None or not limits[queue_index].active:
            return False
        wait = limits[queue_index].admit(0, time.monotonic())
        if wait == 0:
            return False
        if queue_index not in self._waiting_for_limit:
            self._waiting_for_limit.add(queue_index)
            limits.after(wait, partial(self._wait_is_over, queue_index))
        return True

    def _charge(self, queue_index: Literal[0, 1], size: int) -> None:
        """Count a frame that has moved, for which later ones may wait."""
        limits = self._limits
        if limits is not None and limits[queue_index].active:
            limits[queue_index].charge(size, time.monotonic())

    def _wait_is_over(self, queue_index: int) -> None:
        with self.working():
            self._wait_ends(queue_index)

    def _wait_ends(self, queue_index: int) -> None:
        self._waiting_for_limit.discard(queue_index)
        if queue_index == _TRANSMIT and self.active and self._queues[_TRANSMIT].ready:
            self.process(_TRANSMIT)
        self._tell_changes()

    def _flush_link(self) -> bool:
        """Flush the link; return True if nothing waits any more."""
        try:
            return self.link.flush()
        except LinkLostError:
            self._lose_link()
        return True

    def _receive(self) -> None:
        """Give the guest the link's frames, as far as it has buffers."""
        if not self.active or not self._queues[_RECEIVE].ready:
            self._waiting = b""
            self._drop_frames()
            return
        queue = self._queues[_RECEIVE]
        merge = bool(self._features & Feature.MRG_RXBUF)
        room = Room(queue, merge=merge, most_views=_MOST_VIEWS)
        received = False
        try:
            for _ in range(_TURN):
                if self._has_to_wait(_RECEIVE) or not self.wants_read:
                    break
                if not self._receive_one(room):
                    break
                received = True
        finally:
            room.give_back()
        if received:
            self._notify_driver(queue)

    def _receive_one(self, room: Room) -> bool:
        """Read a frame, or take the waiting one; return whether there was one with room."""
        if self._waiting:
            return self._give_waiting(room)
        if not room.reserve(self._guess) and not room.views:
            self._starved = True
            return False
        size = self._read([*room.views, self._spill])
        if not HEADER_SIZE < size < _SPILL_SIZE:
            # Nothing, or an invalid frame; others may follow.
            return size > 0
        self.received += size - HEADER_SIZE
        self._charge(_RECEIVE, size - HEADER_SIZE)
        self._guess = size
        if size > room.size and not self._give_spilled(room, size):
            return False
        if size <= room.size:
            room.use(size)
        return True

    def _give_spilled(self, room: Room, size: int) -> bool:
        """Copy the bytes beyond the prepared room; if there is no room, the frame waits.

        A frame that does not fit its one buffer is lost, as in a card with a ring that is too
        small.
        """
        before = room.size
        spilled = self._spill[: size - before]
        if not room.merge:
            return True
        if room.reserve(size):
            room.fill(before, spilled)
            return True
        self._waiting = gather((*split(room.views, before)[0], spilled))
        self._starved = True
        return False

    def _give_waiting(self, room: Room) -> bool:
        size = len(self._waiting)
        if not room.reserve(size):
            self._starved = True
            return False
        if size <= room.size:
            room.fill(0, memoryview(self._waiting))
            room.use(size)
        self._waiting = b""
        return True

    def _drop_frames(self) -> None:
        for _ in range(_TURN):
            if not self.wants_read or not self._read([self._spill]):
                return

    def _read(self, buffers: list[memoryview]) -> int:
        try:
            return self.link.read(buffers)
        except LinkLostError:
            self._lose_link()
            return 0

    def _lose_link(self) -> None:
        self._link_up = False
        if self._host is not None:
            self._host.config_changed()
