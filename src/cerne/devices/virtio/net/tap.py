"""A link by a tap interface (Documentation/networking/tuntap.rst), with headers and offloads.

The tap was opened with IFF_VNET_HDR and headers of 12 bytes, so that frames move to it and from it
without a change of guest memory. The kernel does a guest's offloads, or leaves them to another
guest that receives the frame.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence

from cerne.devices.virtio.buffers import Views
from cerne.devices.virtio.net.header import Feature
from cerne.devices.virtio.net.link import LinkLostError

# From <linux/if_tun.h>.
_TUNSETOFFLOAD = 0x400454D0
_TUN_F = {
    Feature.GUEST_CSUM: 0x01,
    Feature.GUEST_TSO4: 0x02,
    Feature.GUEST_TSO6: 0x04,
    Feature.GUEST_ECN: 0x08,
}
# From Linux 6.2 on the kernel has both of them, before that neither.
_USO = Feature.GUEST_USO4 | Feature.GUEST_USO6
_TUN_F_USO = 0x60
_BASIC = (
    Feature.CSUM
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
)
# The kernel's errors for a removed interface, or one whose network namespace was removed.
_GONE = (errno.EBADFD, errno.ENODEV, errno.ENXIO)


class TapLink:
    """The link; it takes over and closes the descriptor of a tap."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        os.set_blocking(descriptor, False)
        self._blocked = False
        self.features = int(_BASIC)
        if self._takes(_TUN_F_USO | _TUN_F[Feature.GUEST_CSUM]):
            self.features |= _USO | Feature.HOST_USO
        self._takes(0)

    @property
    def wants_write(self) -> bool:
        """Whether the tap had no room for a frame."""
        return self._blocked

    def fileno(self) -> int:
        """The tap."""
        return self._descriptor

    def set_offloads(self, offloads: int) -> None:
        """Set the kernel's offloads (see `Link.set_offloads`)."""
        if not self._takes(_flags(offloads)):
            raise LinkLostError

    def send(self, header: bytes, frame: Views) -> bool:
        """Write a frame without a copy; a frame that the kernel refuses is lost."""
        try:
            os.writev(self._descriptor, [header, *frame])
        except BlockingIOError:
            self._blocked = True
            return False
        except OSError as error:
            self._lose_if_gone(error)
        return True

    def flush(self) -> bool:
        """Do nothing: a waiting frame stays in the guest's queue."""
        self._blocked = False
        return True

    def read(self, buffers: Sequence[memoryview]) -> int:
        """Read a frame into the buffers (see `Link.read`)."""
        try:
            return os.readv(self._descriptor, buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLostError from error

    def close(self) -> None:
        """Close the descriptor; an interface that is not persistent disappears."""
        os.close(self._descriptor)

    def _takes(self, offloads: int) -> bool:
        try:
            fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, offloads)
        except OSError:
            return False
        return True

    def _lose_if_gone(self, error: OSError) -> None:
        if error.errno in _GONE:
            raise LinkLostError from error


def _flags(offloads: int) -> int:
    """The kernel's flags; it refuses a flag without those that it depends on."""
    if not offloads & Feature.GUEST_CSUM:
        return 0
    if not offloads & (Feature.GUEST_TSO4 | Feature.GUEST_TSO6):
        offloads &= ~Feature.GUEST_ECN
    segments = _TUN_F_USO if offloads & _USO == _USO else 0
    return segments | sum(bit for feature, bit in _TUN_F.items() if offloads & feature)
