"""The kernel's statistics of a VM or a vCPU, from the descriptor of KVM_GET_STATS_FD.

The file is a header, a name, descriptors and values (Documentation/virt/kvm/api.rst, 4.133).
"""

from __future__ import annotations

import os
import struct
from ctypes import sizeof

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


def _read(stats: int) -> Statistics:
    header = abi.kvm_stats_header.from_buffer_copy(os.pread(stats, sizeof(abi.kvm_stats_header), 0))
    stride = sizeof(abi.kvm_stats_desc) + header.name_size
    block = os.pread(stats, stride * header.num_desc, header.desc_offset)
    values: Statistics = {}
    for start in range(0, len(block), stride):
        kind = abi.kvm_stats_desc.from_buffer_copy(block, start)
        name = block[start + sizeof(kind) : start + stride].split(b"\0")[0].decode()
        data = os.pread(stats, 8 * kind.size, header.data_offset + kind.offset)
        numbers: tuple[int, ...] = struct.unpack(f"={kind.size}Q", data)
        values[name] = numbers[0] if kind.size == 1 else numbers
    return values
