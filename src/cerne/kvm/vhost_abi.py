"""The kernel's binary interface to vhost, as `<linux/vhost.h>` and `<linux/vhost_types.h>` have it.

As in `cerne.kvm.abi`: the kernel's names, fields and order, and numbers computed from sizes.
"""

import ctypes
from ctypes import Structure
from enum import IntEnum

from cerne.kvm._structure import c_layout, s32, u32, u64


@c_layout
class vhost_vring_state(Structure):
    index: u32
    num: u32


@c_layout
class vhost_vring_file(Structure):
    index: u32
    fd: s32


@c_layout
class vhost_vring_addr(Structure):
    index: u32
    flags: u32
    desc_user_addr: u64
    used_user_addr: u64
    avail_user_addr: u64
    log_guest_addr: u64


@c_layout
class vhost_memory_region(Structure):
    guest_phys_addr: u64
    memory_size: u64
    userspace_addr: u64
    flags_padding: u64


@c_layout
class vhost_memory(Structure):
    nregions: u32
    padding: u32


_VHOST_VIRTIO = 0xAF
_WRITE = 1
_READ = 2

_AnyStructure = type[Structure] | type[ctypes.c_uint64]


def _io(number: int) -> int:
    return _VHOST_VIRTIO << 8 | number


def _iow(number: int, argument: _AnyStructure) -> int:
    return _WRITE << 30 | ctypes.sizeof(argument) << 16 | _io(number)


def _ior(number: int, argument: _AnyStructure) -> int:
    return _READ << 30 | ctypes.sizeof(argument) << 16 | _io(number)


class VhostIoctl(IntEnum):
    """The ioctls of a vhost device that are used here, by the kernel's names."""

    VHOST_GET_FEATURES = _ior(0x00, ctypes.c_uint64)
    VHOST_SET_FEATURES = _iow(0x00, ctypes.c_uint64)
    VHOST_SET_OWNER = _io(0x01)
    VHOST_SET_MEM_TABLE = _iow(0x03, vhost_memory)
    VHOST_SET_VRING_NUM = _iow(0x10, vhost_vring_state)
    VHOST_SET_VRING_ADDR = _iow(0x11, vhost_vring_addr)
    VHOST_SET_VRING_BASE = _iow(0x12, vhost_vring_state)
    VHOST_GET_VRING_BASE = _iow(0x12, vhost_vring_state) | _ior(0x12, vhost_vring_state)
    VHOST_SET_VRING_KICK = _iow(0x20, vhost_vring_file)
    VHOST_SET_VRING_CALL = _iow(0x21, vhost_vring_file)
    VHOST_NET_SET_BACKEND = _iow(0x30, vhost_vring_file)
