"""The guarantees of this host: refuses CPUs and memory that the host does not have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cerne.errors import CapacityError
from cerne.host.cgroup import require_weights
from cerne.units import MIB, format_size

if TYPE_CHECKING:
    from cerne.spec.machine import MachineSpec

_LEAST_RESERVE = 256 * MIB
_RESERVED_PART = 20


def memory_limit() -> int:
    """Bytes that all running machines may have together: the host's memory less a reserve.

    The reserve, a twentieth or 256 MiB, is for the host itself and for the machines' processes.
    """
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, total - max(_LEAST_RESERVE, total // _RESERVED_PART))


def check_host(spec: MachineSpec) -> None:
    """Refuse a machine that this host could not run even without other machines.

    Raises:
        CapacityError: more CPUs or memory than the host has.
        HostError: a CPU weight, where this host does not let this user give one.
    """
    if spec.resources.cpu.weight is not None:
        require_weights()
    cpus = len(os.sched_getaffinity(0))
    if spec.cpus > cpus:
        raise CapacityError(
            f"{spec.name} needs {spec.cpus} CPUs, and this host has {cpus}",
            hint=f"ask for at most --cpus {cpus}",
            machine=spec.name,
        )
    limit = memory_limit()
    if spec.memory > limit:
        raise CapacityError(
            f"{spec.name} needs {format_size(spec.memory)} of memory, and this host can give"
            f" {format_size(limit)}",
            hint=f"ask for at most --memory {limit // MIB}M",
            machine=spec.name,
        )
