"""The kernel's statistics of a VM or a vCPU, from the descriptor of KVM_GET_STATS_FD.

The file is a header, a name, descriptors and values (Documentation/virt/kvm/api.rst, 4.133).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from ctypes import sizeof

from cerne.errors import KvmError
from cerne.kvm import abi
from cerne.kvm._ioctl import ioctl
from cerne.kvm.abi import Ioctl

Statistics = dict[str, int | tuple[int, ...]]
"""A statistic's name to its value, or to the buckets of a histogram."""


def read_stats(descriptor: int) -> Statistics:
    """All statistics of a VM's or a vCPU's descriptor.

    Raises:
        KvmError: the kernel has none (before Linux 5.14).
    """
    stats = ioctl(descriptor, Ioctl.KVM_GET_STATS_FD)
    try:
        return _read(stats)
    finally:
        os.close(stats)


class Counter:
    """One statistic of a VM or a vCPU, which is read without the kernel's lock of the vCPU.

    Raises, when it is made:
        KvmError: the kernel has no statistics, or not this one.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        self._stats = ioctl(descriptor, Ioctl.KVM_GET_STATS_FD)
        places = {found: place for found, place, _ in _table(self._stats)}
        if name not in places:
            os.close(self._stats)
            raise KvmError(Ioctl.KVM_GET_STATS_FD.name, errno.ENOENT)
        self._place = places[name]

    def read(self) -> int:
        """Its value now."""
        value: int = struct.unpack("=Q", os.pread(self._stats, 8, self._place))[0]
        return value

    def close(self) -> None:
        """Close it, once."""
        os.close(self._stats)


def _read(stats: int) -> Statistics:
    values: Statistics = {}
    for name, place, size in _table(stats):
        numbers: tuple[int, ...] = struct.unpack(f"={size}Q", os.pread(stats, 8 * size, place))
        values[name] = numbers[0] if size == 1 else numbers
    return values


def _table(stats: int) -> Iterator[tuple[str, int, int]]:
    """The name of each statistic, the offset of its value, and its number of 64-bit words."""
    header = abi.kvm_stats_header.from_buffer_copy(os.pread(stats, sizeof(abi.kvm_stats_header), 0))
    stride = sizeof(abi.kvm_stats_desc) + header.name_size
    block = os.pread(stats, stride * header.num_desc, header.desc_offset)
    for start in range(0, len(block), stride):
        kind = abi.kvm_stats_desc.from_buffer_copy(block, start)
        name = block[start + sizeof(kind) : start + stride].split(b"\0")[0].decode()
        yield name, header.data_offset + kind.offset, kind.size
