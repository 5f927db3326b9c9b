"""Packets of the socket device: a header and a stream's bytes (virtio 1.2, 5.10.6)."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

HOST_CID = 2
STREAM = 1
"""The type of a packet of a stream, the only supported type."""

_HEADER = struct.Struct("<QQIIIHHIII")
HEADER_SIZE = _HEADER.size


class Operation(IntEnum):
    """The operation of a packet."""

    REQUEST = 1
    RESPONSE = 2
    RESET = 3
    SHUTDOWN = 4
    DATA = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown(IntFlag):
    """The directions that the sender of a SHUTDOWN closes."""

    NONE = 0
    RECEIVE = 1
    SEND = 2
    BOTH = 3


class Header(NamedTuple):
    """The header of a packet of either side, unchecked."""

    source_cid: int
    target_cid: int
    source_port: int
    target_port: int
    length: int
    """The bytes after the header."""
    kind: int
    operation: int
    flags: int
    buffer: int
    """The whole room that the sender has for the bytes of this connection."""
    forwarded: int
    """Bytes of this connection that have left that room, modulo 2^32."""

    @classmethod
    def read(cls, data: bytes) -> Header | None:
        """The header at the beginning of a packet, or None if the packet is too short."""
        if len(data) < HEADER_SIZE:
            return None
        return cls._make(_HEADER.unpack_from(data))

    def pack(self) -> bytes:
        """The header's bytes."""
        return _HEADER.pack(*self)
