"""/dev/kvm: the kernel's features as a hypervisor, and the creation of virtual machines."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from ctypes import c_uint32
from typing import TYPE_CHECKING

from cerne.errors import HostError, KvmError
from cerne.kvm import abi
from cerne.kvm._descriptor import Descriptor
from cerne.kvm._ioctl import ioctl
from cerne.kvm.abi import Capability, Flexible, Ioctl
from cerne.kvm.msr import read_msrs
from cerne.kvm.vm import Vm

if TYPE_CHECKING:
    from pathlib import Path

KVM_DEVICE = "/dev/kvm"

# The kernel's own limit is 256 (KVM_MAX_CPUID_ENTRIES).
_MAX_CPUID_ENTRIES = 256


class Kvm(Descriptor):
    """The open /dev/kvm."""

    def __init__(self, device: Path | str = KVM_DEVICE) -> None:
        """Open the device.

        Raises:
            KvmError: it is missing or not open to this user; the hint is the command to type.
            HostError: its API is not the one that has been stable since Linux 2.6.22.
        """
        super().__init__(_open(device))
        version = self.get_api_version()
        if version != abi.KVM_API_VERSION:
            self.close()
            raise HostError(
                f"{device} has version {version} of the KVM API, and Cerne needs version 12"
            )

    def get_api_version(self) -> int:
        """The version of the API: 12."""
        return ioctl(self._descriptor, Ioctl.KVM_GET_API_VERSION)

    def check_extension(self, capability: Capability) -> int:
        """0 if the capability is missing; else 1, or the capability's number."""
        return ioctl(self._descriptor, Ioctl.KVM_CHECK_EXTENSION, capability)

    def get_vcpu_mmap_size(self) -> int:
        """Bytes that a vCPU shares with its thread."""
        return ioctl(self._descriptor, Ioctl.KVM_GET_VCPU_MMAP_SIZE)

    def get_supported_cpuid(self) -> list[abi.kvm_cpuid_entry2]:
        """The CPUID leaves that the host supports for a guest."""
        leaves = Flexible.of(abi.kvm_cpuid2, abi.kvm_cpuid_entry2, _MAX_CPUID_ENTRIES)
        leaves.head.nent = _MAX_CPUID_ENTRIES
        ioctl(self._descriptor, Ioctl.KVM_GET_SUPPORTED_CPUID, leaves.buffer)
        return leaves.entries[: leaves.head.nent]

    def get_msr_index_list(self) -> list[int]:
        """The MSRs that make up a vCPU's state."""
        return self._msr_list(Ioctl.KVM_GET_MSR_INDEX_LIST)

    def get_msr_feature_index_list(self) -> list[int]:
        """The MSRs that say what the host offers; `get_msrs` reads them."""
        return self._msr_list(Ioctl.KVM_GET_MSR_FEATURE_INDEX_LIST)

    def get_msrs(self, indices: Sequence[int]) -> dict[int, int]:
        """The readable feature MSRs among these, with their values."""
        return read_msrs(self._descriptor, indices)

    def create_vm(self) -> Vm:
        """A new virtual machine, without memory, vCPUs or interrupt controllers.

        Raises:
            KvmError: the kernel refused.
        """
        descriptor = ioctl(self._descriptor, Ioctl.KVM_CREATE_VM)
        return Vm(descriptor, self.get_vcpu_mmap_size())

    def _msr_list(self, operation: Ioctl) -> list[int]:
        count = 0
        while True:
            msrs = Flexible.of(abi.kvm_msr_list, c_uint32, count)
            msrs.head.nmsrs = count
            try:
                ioctl(self._descriptor, operation, msrs.buffer)
            except KvmError as error:
                if error.errno != errno.E2BIG or msrs.head.nmsrs <= count:
                    raise
                count = msrs.head.nmsrs
            else:
                return list(msrs.entries[: msrs.head.nmsrs])


def _open(device: Path | str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _cannot_open(f"there is no {device}", error, device) from error
    except PermissionError as error:
        raise _cannot_open(f"{device} is not open to this user", error, device) from error
    except OSError as error:
        raise _cannot_open(f"opening {device} failed: {error.strerror}", error, device) from error


def _cannot_open(message: str, error: OSError, device: Path | str) -> KvmError:
    # Imported here, because a quick start of machines does not need these modules.
    from cerne.kvm.hints import missing_hint, permission_hint

    refused = isinstance(error, PermissionError)
    hint = permission_hint(device) if refused else missing_hint()
    return KvmError("open", error.errno or errno.EIO, message=message, hint=hint)
