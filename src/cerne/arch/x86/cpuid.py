"""The CPUID leaves of a guest: what the host's kernel supports, with this machine's topology.

Each vCPU is a separate core in one package (Intel SDM, volume 2, CPUID; leaves 1, 4 and 0xB).
"""

from __future__ import annotations

from collections.abc import Sequence

from cerne.kvm.abi import kvm_cpuid_entry2

_FEATURES, _CACHES, _TOPOLOGY, _TOPOLOGY_V2 = 0x1, 0x4, 0xB, 0x1F
_AMD_TOPOLOGY, _AMD_CORES = 0x8000_001E, 0x8000_0008
_HYPERVISOR, _TSC_DEADLINE = 1 << 31, 1 << 24
_HYPERTHREADING = 1 << 28
_SMT_LEVEL, _CORE_LEVEL = 1 << 8, 2 << 8


def guest_cpuid(
    supported: Sequence[kvm_cpuid_entry2], index: int, cpus: int
) -> list[kvm_cpuid_entry2]:
    """The leaves for the vCPU of this index, of so many vCPUs."""
    leaves = [_adapted(entry, index, cpus) for entry in supported if not _is_topology(entry)]
    return leaves + _topology(index, cpus)


def _is_topology(entry: kvm_cpuid_entry2) -> bool:
    return entry.function in (_TOPOLOGY, _TOPOLOGY_V2)


def _adapted(source: kvm_cpuid_entry2, index: int, cpus: int) -> kvm_cpuid_entry2:
    entry = kvm_cpuid_entry2.from_buffer_copy(source)
    if entry.function == _FEATURES:
        entry.ebx = entry.ebx & 0xFFFF | cpus << 16 | index << 24
        entry.ecx |= _HYPERVISOR | _TSC_DEADLINE
        entry.edx = entry.edx & ~_HYPERTHREADING | (_HYPERTHREADING if cpus > 1 else 0)
    elif entry.function == _CACHES:
        # No cache is shared between threads; the cores of the package are counted in bits 31:26.
        entry.eax = entry.eax & ~(0xFFF << 14 | 0x3F << 26) | min(cpus - 1, 0x3F) << 26
    elif entry.function == _AMD_TOPOLOGY:
        entry.eax, entry.ebx, entry.ecx = index, index, 0
    elif entry.function == _AMD_CORES:
        entry.ecx = entry.ecx & ~0xF0FF | min(cpus - 1, 0xFF)
    return entry


def _topology(index: int, cpus: int) -> list[kvm_cpuid_entry2]:
    bits = max(cpus - 1, 0).bit_length()
    significant = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    levels = ((0, 1, _SMT_LEVEL), (bits, cpus, _CORE_LEVEL | 1), (0, 0, 2))
    return [
        kvm_cpuid_entry2(
            function=_TOPOLOGY,
            index=level,
            flags=significant,
            eax=shift,
            ebx=count,
            ecx=kind,
            edx=index,
        )
        for level, (shift, count, kind) in enumerate(levels)
    ]
