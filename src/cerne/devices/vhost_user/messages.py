"""The messages of vhost-user, as bytes (QEMU's docs/interop/vhost-user.rst).

Numbers are little-endian. The size and the content of each answer are checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple

from cerne.errors import HostError
from cerne.kvm.memory import MemoryRegion
from cerne.units import counted

HEADER_SIZE = 12
LARGEST_PAYLOAD = 4096
"""The longest reply, in bytes."""
LARGEST_CONFIG = 256
"""Bytes of a device's configuration."""
MOST_REGIONS = 8
"""The regions of guest memory that every backend takes."""
FEATURE_PROTOCOL = 1 << 30
"""A bit among the virtio features: the backend has protocol features."""

_VERSION = 1
_VERSION_MASK = 3
_REPLY = 1 << 2
_NEED_REPLY = 1 << 3
_NO_DESCRIPTOR = 1 << 8

_HEADER = struct.Struct("<III")
_U64 = struct.Struct("<Q")
_VRING_STATE = struct.Struct("<II")
_VRING_ADDRESS = struct.Struct("<IIQQQQ")
_REGIONS = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")
_CONFIG = struct.Struct("<III")
_INFLIGHT = struct.Struct("<QQHH")
# The size of the structure in C, which QEMU sends and its backends require.
_INFLIGHT_SIZE = 24
_LARGEST_INFLIGHT = 16 << 20


class BackendError(HostError):
    """A backend is gone, does not answer, or breaks the protocol."""

    code = "backend"


class Request(IntEnum):
    """Requests of the front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34


class ProtocolFeature(IntFlag):
    """Features of the protocol that both sides negotiate."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13


class Inflight(NamedTuple):
    """The place in a file of a backend's notes of unfinished requests."""

    size: int
    offset: int
    queues: int
    queue_size: int


def encode(request: Request, payload: bytes = b"", *, need_reply: bool = False) -> bytes:
    """A whole message."""
    flags = _VERSION | (_NEED_REPLY if need_reply else 0)
    return _HEADER.pack(request, flags, len(payload)) + payload


def reply_size(header: bytes, request: Request) -> int:
    """The payload's size, from the header of a reply to this request.

    Raises:
        BackendError: it is not a reply to this request.
    """
    kind, flags, size = _HEADER.unpack(header)
    if kind != request or not flags & _REPLY or flags & _VERSION_MASK != _VERSION:
        raise BackendError(
            f"the backend answered {request.name} with message {kind}, flags {flags:#x}"
        )
    if size > LARGEST_PAYLOAD:
        raise BackendError(f"the backend answered {request.name} with {counted(size, 'byte')}")
    return int(size)


def encode_u64(value: int) -> bytes:
    """A number."""
    return _U64.pack(value)


def decode_u64(request: Request, payload: bytes) -> int:
    """The number in a reply; raises BackendError for anything else."""
    return int(_unpacked(request, _U64, payload)[0])


def encode_vring(index: int, value: int) -> bytes:
    """A number of one queue."""
    return _VRING_STATE.pack(index, value)


def decode_vring(request: Request, payload: bytes, index: int) -> int:
    """The 16-bit number of that queue in a reply; raises BackendError for anything else."""
    told, value = _unpacked(request, _VRING_STATE, payload)
    if told != index or value > 0xFFFF:
        raise BackendError(
            f"the backend answered {request.name} of queue {index} with queue {told}, "
            f"number {value}"
        )
    return int(value)


def encode_vring_address(index: int, descriptors: int, driver: int, device: int) -> bytes:
    """The addresses of a queue, in the memory table."""
    return _VRING_ADDRESS.pack(index, 0, descriptors, device, driver, 0)


def encode_vring_descriptor(index: int) -> bytes:
    """The number of the queue for the eventfd of the message."""
    if not 0 <= index < _NO_DESCRIPTOR:
        raise ValueError(f"vhost-user has no queue {index}")
    return _U64.pack(index)


def encode_regions(regions: Sequence[MemoryRegion]) -> bytes:
    """The memory table; the regions' descriptors go with it.

    The table has the guest's addresses in place of our own: a backend only looks them up in this
    table.
    """
    if not 0 < len(regions) <= MOST_REGIONS:
        raise ValueError(
            f"the memory has {len(regions)} regions, which vhost-user does not describe"
        )
    parts = [_REGIONS.pack(len(regions), 0)]
    parts += [
        _REGION.pack(region.start, region.size, region.start, region.file_offset)
        for region in regions
    ]
    return b"".join(parts)


def encode_config(size: int) -> bytes:
    """A request for the first `size` bytes of the device's configuration."""
    return _CONFIG.pack(0, size, 0) + bytes(size)


def decode_config(payload: bytes, size: int) -> bytes:
    """The configuration in a reply; raises BackendError for anything else."""
    if len(payload) != _CONFIG.size + size or _CONFIG.unpack_from(payload)[:2] != (0, size):
        raise BackendError(
            f"the backend did not answer with {counted(size, 'byte')} of configuration"
        )
    return payload[_CONFIG.size :]


def encode_inflight(inflight: Inflight) -> bytes:
    """The place for notes of requests."""
    values = (inflight.size, inflight.offset, inflight.queues, inflight.queue_size)
    return _INFLIGHT.pack(*values).ljust(_INFLIGHT_SIZE, b"\0")


def decode_inflight(payload: bytes, asked: Inflight) -> Inflight:
    """The backend's place for notes of requests; raises BackendError for anything else."""
    if len(payload) not in (_INFLIGHT.size, _INFLIGHT_SIZE):
        raise BackendError(
            f"the backend answered GET_INFLIGHT_FD with {counted(len(payload), 'byte')}"
        )
    told = Inflight(*_INFLIGHT.unpack_from(payload))
    fits = 0 < told.size <= _LARGEST_INFLIGHT and told.offset <= _LARGEST_INFLIGHT
    if not fits or (told.queues, told.queue_size) != (asked.queues, asked.queue_size):
        raise BackendError(f"the backend has an invalid place for its notes: {told}")
    return told


def _unpacked(request: Request, form: struct.Struct, payload: bytes) -> tuple[int, ...]:
    if len(payload) != form.size:
        raise BackendError(
            f"the backend answered {request.name} with {counted(len(payload), 'byte')}"
        )
    return form.unpack(payload)
