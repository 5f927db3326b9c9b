"""virtio_net_hdr, before every frame in both directions (virtio 1.2, section 5.1.6), and offloads.

A header says what the sender of a frame has not done: its checksum, and its segmentation to the
network's size. A guest's headers may use only negotiated features; they are checked here
completely, before a kernel or another process gets them.
"""

from __future__ import annotations

import struct
from enum import IntFlag


class Feature(IntFlag):
    """Feature bits of a network device (virtio 1.2, section 5.1.3; USO: virtio 1.3)."""

    CSUM = 1 << 0
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    MTU = 1 << 3
    MAC = 1 << 5
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    MRG_RXBUF = 1 << 15
    STATUS = 1 << 16
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_MAC_ADDR = 1 << 23
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56


GUEST_OFFLOADS = (
    Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
    | Feature.GUEST_USO4
    | Feature.GUEST_USO6
)
"""The offloads that a guest handles, and may turn on and off while it runs."""

HEADER_SIZE = 12
SMALLEST_FRAME = 14
"""The bytes of an Ethernet header."""
LARGEST_FRAME = 65550
"""The largest IP packet and an Ethernet header: no frame is longer, segmented or not."""

DATA_VALID = 2
NO_OFFLOAD = bytes(HEADER_SIZE)
"""A header of a frame without offloads."""

_HEADER = struct.Struct("<BBHHHHH")
_NEEDS_CHECKSUM = 1
_SEGMENT_ECN = 0x80
_SEGMENTS = {1: Feature.HOST_TSO4, 4: Feature.HOST_TSO6, 5: Feature.HOST_USO}
_UDP_SEGMENTS = 5
# Linux's TCP sends no less (TCP_MIN_SND_MSS, without 40 bytes of options); and its largest number
# has another meaning in the kernel (GSO_BY_FRAGS).
_SMALLEST_SEGMENT, _LARGEST_SEGMENT = 8, 65534


def checked_header(header: bytes, frame_size: int, features: int) -> bytes | None:
    """A frame's header without unused fields; None if the frame is refused.

    `header` is a copy, which the guest has no access to.
    """
    if header == NO_OFFLOAD and SMALLEST_FRAME <= frame_size <= LARGEST_FRAME:
        return NO_OFFLOAD
    if len(header) != HEADER_SIZE or not SMALLEST_FRAME <= frame_size <= LARGEST_FRAME:
        return None
    flags, kind, header_length, segment, start, offset, _ = _HEADER.unpack(header)
    if not flags & _NEEDS_CHECKSUM:
        return None if kind else NO_OFFLOAD
    if not features & Feature.CSUM or start + offset + 2 > frame_size:
        return None
    if not kind:
        return _HEADER.pack(_NEEDS_CHECKSUM, 0, 0, 0, start, offset, 0)
    if not _may_be_cut(kind, features) or header_length > frame_size:
        return None
    if not _SMALLEST_SEGMENT <= segment <= _LARGEST_SEGMENT:
        return None
    return _HEADER.pack(_NEEDS_CHECKSUM, kind, header_length, segment, start, offset, 0)


def _may_be_cut(kind: int, features: int) -> bool:
    way, ecn = kind & ~_SEGMENT_ECN, kind & _SEGMENT_ECN
    if ecn and (way == _UDP_SEGMENTS or not features & Feature.HOST_ECN):
        return False
    return bool(features & _SEGMENTS.get(way, 0))
