"""Model-specific registers, read and written many at a time (KVM_GET_MSRS, KVM_SET_MSRS).

The kernel stops at the first register that it does not have and returns how many it did.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from cerne.errors import KvmError
from cerne.kvm import abi
from cerne.kvm._ioctl import ioctl
from cerne.kvm.abi import Flexible, Ioctl


def read_msrs(descriptor: int, indices: Sequence[int]) -> dict[int, int]:
    """The values of the readable registers among these."""
    values: dict[int, int] = {}
    wanted = list(indices)
    while wanted:
        msrs = _msrs(dict.fromkeys(wanted, 0))
        done = ioctl(descriptor, Ioctl.KVM_GET_MSRS, msrs.buffer)
        values.update((entry.index, entry.data) for entry in msrs.entries[:done])
        # The register at which it stopped is not readable; those after it may be.
        wanted = wanted[done + 1 :]
    return values


def write_msrs(descriptor: int, values: Mapping[int, int]) -> None:
    """Set registers, in the order given.

    Raises:
        KvmError: the kernel refused one; the message names it.
    """
    if not values:
        return
    done = ioctl(descriptor, Ioctl.KVM_SET_MSRS, _msrs(values).buffer)
    if done < len(values):
        index, value = list(values.items())[done]
        raise KvmError(
            Ioctl.KVM_SET_MSRS.name,
            errno.EINVAL,
            message=f"KVM_SET_MSRS: this host refuses {value:#x} in MSR {index:#x}",
        )


def _msrs(values: Mapping[int, int]) -> Flexible[abi.kvm_msrs, abi.kvm_msr_entry]:
    msrs = Flexible.of(abi.kvm_msrs, abi.kvm_msr_entry, len(values))
    msrs.head.nmsrs = len(values)
    for entry, (index, value) in zip(msrs.entries, values.items(), strict=True):
        entry.index = index
        entry.data = value
    return msrs
