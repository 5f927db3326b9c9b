"""The network device (virtio 1.2, section 5.1), whose other end is a stream socket to passt.

On the socket each frame follows its length, 32 bits in network order, as QEMU's stream netdev has
it. The guest's frames have a virtio_net_hdr before them, which is taken off and put on here; no
offload is offered, so that it is always empty.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.buffers import gather, scatter, size_of, split
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.queue import Chain
from cerne.errors import InputError

HEADER_SIZE = 12
LARGEST_FRAME = 65535
_RECEIVE, _TRANSMIT = 0, 1
_FEATURE_MAC = 1 << 5
_FEATURE_STATUS = 1 << 16
_LINK_UP = 1
_LENGTH = struct.Struct("!I")
# num_buffers is 1 wherever the header is 12 bytes; all else says: no offload.
_HEADER = bytes(10) + b"\1\0"


class NetDevice(VirtioDevice):
    """A network card. Call `receive` when the socket can be read, `flush` when written.

    The socket is the caller's, connected and non-blocking. When its other end has gone, the link
    is down and the guest's frames are dropped, as on a cable that was pulled. When `wants_read` or
    `wants_write` has changed `on_change` is called, from whatever thread; it must not wait.
    """

    device_type = 1
    class_code = 0x020000
    features = _FEATURE_MAC | _FEATURE_STATUS
    queue_sizes = (256, 256)

    def __init__(
        self, mac: bytes, link: socket.socket, on_change: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        if len(mac) != 6 or mac[0] & 1:
            raise InputError(f"{mac.hex(':')} is not the address of a network card")
        self._mac = mac
        self._link = link
        self._link_up = True
        self._on_change = on_change
        self._wanted = (True, False)
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def wants_write(self) -> bool:
        """Whether a frame waits for the socket to take more; then call `flush`."""
        return self._link_up and bool(self._outgoing)

    @property
    def wants_read(self) -> bool:
        """Whether another frame has room; not where one waits for the guest's buffers."""
        return self._link_up and self._frame_length() is None

    def config(self) -> bytes:
        """The address and the link's state."""
        return self._mac + int(self._link_up).to_bytes(2, "little")

    def receive(self) -> None:
        """Take what the socket has, and give the guest whole frames."""
        with self.working():
            self._deliver()
            while self.wants_read and self._fill():
                self._deliver()
            self._tell_changes()

    def flush(self) -> None:
        """Send on what waited for the socket, and then what the guest has queued."""
        with self.working():
            if self._send_waiting() and self.active and self._queues[_TRANSMIT].ready:
                self.process(_TRANSMIT)
            self._tell_changes()

    def process(self, queue_index: int) -> None:
        """Send the guest's frames, or use the buffers it has given."""
        if queue_index == _TRANSMIT:
            self._drain(self._queues[_TRANSMIT], self._transmit)
        else:
            self._deliver()
        self._tell_changes()

    def reset(self) -> None:
        """No frame waits for the driver's buffers any more."""
        super().reset()
        if self._frame_length() is not None:
            self._incoming.clear()
        self._tell_changes()

    def state(self) -> PlainState:
        """Bytes of frames on their way; the link itself is made anew."""
        return {"incoming": self._incoming.hex(), "outgoing": self._outgoing.hex()}

    def restore(self, state: PlainState) -> None:
        """Take them back; raises DamagedError where that cannot be."""
        saved = SavedState("a network card", state)
        longest = _LENGTH.size + LARGEST_FRAME
        self._incoming[:] = saved.data("incoming", longest)
        self._outgoing[:] = saved.data("outgoing", longest)

    def _tell_changes(self) -> None:
        wanted = (self.wants_read, self.wants_write)
        if wanted != self._wanted:
            self._wanted = wanted
            self._on_change()

    def _transmit(self, chain: Chain) -> int | None:
        if not self._send_waiting():
            return None
        frame = split(chain.readable, HEADER_SIZE)[1]
        size = size_of(frame)
        if self._link_up and 0 < size <= LARGEST_FRAME:
            self._outgoing += _LENGTH.pack(size) + gather(frame)
            self._send_waiting()
        return 0

    def _send_waiting(self) -> bool:
        """Whether nothing waits any more."""
        try:
            while self._outgoing:
                del self._outgoing[: self._link.send(self._outgoing)]
        except BlockingIOError:
            return False
        except OSError:
            self._lose_link()
        return True

    def _fill(self) -> bool:
        """Read as much as the frame that has begun lacks; whether there was anything."""
        wanted = _LENGTH.size
        if len(self._incoming) >= _LENGTH.size:
            wanted += _LENGTH.unpack_from(self._incoming)[0]
        if wanted > _LENGTH.size + LARGEST_FRAME:
            self._lose_link()
            return False
        try:
            data = self._link.recv(wanted - len(self._incoming))
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._lose_link()
        self._incoming += data
        return bool(data)

    def _frame_length(self) -> int | None:
        if len(self._incoming) < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(self._incoming)[0]
        return length if len(self._incoming) == _LENGTH.size + length else None

    def _deliver(self) -> None:
        length = self._frame_length()
        if length is None:
            return
        if not self.active or not self._queues[_RECEIVE].ready:
            self._incoming.clear()
            return
        queue = self._queues[_RECEIVE]
        chain = queue.pop()
        if chain is None and queue.enable_notification():
            chain = queue.pop()
        if chain is None:
            return
        frame = _HEADER + self._incoming[_LENGTH.size :]
        self._incoming.clear()
        # What does not fit is lost, as it would be in a card with too small a ring.
        fits = chain.writable_size >= len(frame)
        queue.push(chain.head, scatter(chain.writable, bytes(frame)) if fits else 0)
        self._notify_driver(queue)

    def _lose_link(self) -> None:
        self._link_up = False
        self._incoming.clear()
        self._outgoing.clear()
        if self._host is not None:
            self._host.config_changed()
