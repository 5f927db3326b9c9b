"""A link by a stream socket to passt: each frame follows its length, as in QEMU's stream netdev.

The length is 32 bits in network order. Headers are not sent: Python would have to do a guest's
offloads, so it offers none. Frames from passt have never been on a wire, so a guest need not check
their checksums.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from cerne.devices.virtio.buffers import Views, gather, scatter, size_of
from cerne.devices.virtio.net.header import DATA_VALID, NO_OFFLOAD, Feature
from cerne.devices.virtio.net.link import LinkLostError

LARGEST_FRAME = 65535
"""The longest frame that passt takes."""
_LENGTH = struct.Struct("!I")
_NOT_TO_BE_CHECKED = bytes([DATA_VALID]) + NO_OFFLOAD[1:]


class StreamLink:
    """The link; its socket is connected, and closed with it."""

    features = int(Feature.GUEST_CSUM)

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        link.setblocking(False)
        self._header = NO_OFFLOAD
        self._incoming = bytearray()
        self._outgoing = bytearray()

    @property
    def wants_write(self) -> bool:
        """Whether a frame waits until the socket has room."""
        return bool(self._outgoing)

    def fileno(self) -> int:
        """The socket."""
        return self._link.fileno()

    def set_offloads(self, offloads: int) -> None:
        """Note whether the guest accepts frames without checksums."""
        self._header = _NOT_TO_BE_CHECKED if offloads & Feature.GUEST_CSUM else NO_OFFLOAD

    def send(self, header: bytes, frame: Views) -> bool:
        """Send a frame, or keep the part that the socket does not take (see `Link.send`)."""
        if not self.flush():
            return False
        size = size_of(frame)
        if size <= LARGEST_FRAME:
            self._outgoing += _LENGTH.pack(size) + gather(frame)
            self.flush()
        return True

    def flush(self) -> bool:
        """Send waiting data (see `Link.flush`)."""
        try:
            while self._outgoing:
                del self._outgoing[: self._link.send(self._outgoing)]
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkLostError from error
        return True

    def read(self, buffers: Sequence[memoryview]) -> int:
        """Read one frame, when it is complete (see `Link.read`)."""
        while not self._is_whole():
            if not self._fill():
                return 0
        frame = self._header + self._incoming[_LENGTH.size :]
        self._incoming.clear()
        return scatter(buffers, frame)

    def close(self) -> None:
        """Close the socket, which ends passt."""
        self._link.close()

    def _is_whole(self) -> bool:
        return len(self._incoming) >= _LENGTH.size and len(self._incoming) == self._wanted()

    def _wanted(self) -> int:
        if len(self._incoming) < _LENGTH.size:
            return _LENGTH.size
        length: int = _LENGTH.unpack_from(self._incoming)[0]
        if length > LARGEST_FRAME:
            raise LinkLostError
        return _LENGTH.size + length

    def _fill(self) -> bool:
        """Read the missing part of the present frame; return whether there was any data."""
        try:
            data = self._link.recv(self._wanted() - len(self._incoming))
        except BlockingIOError:
            return False
        except OSError as error:
            raise LinkLostError from error
        if not data:
            raise LinkLostError
        self._incoming += data
        return True
