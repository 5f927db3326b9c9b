"""What this host has for machines: CPUs, memory, and room for their disks.

A process has no more than its affinity (sched_setaffinity(2)) and the control groups around it
allow. These limits are read in both versions: v2's ``cpu.max`` and ``memory.max``
(Documentation/admin-guide/cgroup-v2.rst), and v1's ``cpu.cfs_quota_us`` and
``memory.limit_in_bytes`` (Documentation/admin-guide/cgroup-v1). Memory in hugepages is only for
machines that ask for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from pathlib import Path

from cerne.errors import CapacityError, HostError
from cerne.host.cgroup import HOST, Surface, memberships
from cerne.host.finding import Finding
from cerne.spec.limits import HUGEPAGE
from cerne.units import KIB, counted, format_size

_THOUSANDTH = Decimal("0.001")
_NODES = Path("/sys/devices/system/node")
_MEMINFO = Path("/proc/meminfo")
_RESERVED_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages")
_KSM = Path("/sys/kernel/mm/ksm/run")
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""The limit, the use, and the name of the file cache in ``memory.stat``, of both versions."""


@dataclass(frozen=True, slots=True)
class Hugepages:
    """The hugepages of one size that a NUMA node has."""

    node: int
    size: int
    """Bytes of one page."""
    total: int
    free: int


def supply_findings() -> Iterator[Finding]:
    """What there is for machines, as lines of the doctor's report."""
    cpus, memory = supplied_cpus(), supplied_memory()
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = f"{counted(f'{cpus.normalize():f}', 'CPU')}, {format_size(memory)} of memory"
    if cpus < (os.cpu_count() or 1) or memory < physical:
        whole = counted(os.cpu_count() or 1, "CPU")
        found += f", within limits; this host has {whole}, {format_size(physical)}"
    yield Finding("for machines", found)


def supplied_cpus(surface: Surface = HOST) -> Decimal:
    """How many CPUs the processes of this user may use together."""
    found = Decimal(len(os.sched_getaffinity(0)))
    for group in _groups(surface):
        found = min(found, *_quotas(group))
    return found.quantize(_THOUSANDTH, ROUND_DOWN)


def supplied_memory(surface: Surface = HOST) -> int:
    """Bytes of memory that the processes of this user may use together, without hugepages."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    total -= sum(pages.total * pages.size for pages in hugepages())
    for group in _groups(surface):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(group / name)
            # A group without a limit has the largest number of v1, or no number.
            total = total if limit is None else min(total, limit)
    return max(0, total)


def available_memory(surface: Surface = HOST, meminfo: Path = _MEMINFO) -> int:
    """Bytes that the processes of this user could use at this moment without a wait."""
    words = next((line for line in _text(meminfo).splitlines() if "MemAvailable" in line), "")
    digits = [word for word in words.split() if word.isdecimal()]
    available = int(digits[0]) * KIB if digits else supplied_memory(surface)
    for group in _groups(surface):
        for limit, usage, cache in _MEMORY_FILES:
            most, used = _number(group / limit), _number(group / usage)
            if most is not None and used is not None:
                available = min(available, most - used + _file_cache(group, cache))
    return max(0, available)


def memory_pressure(file: Path = Path("/proc/pressure/memory")) -> float:
    """Percent of the last ten seconds in which a process waited for memory; 0 if not counted."""
    found = re.search(r"^some avg10=([0-9]{1,3}\.[0-9]{1,2}) ", _text(file), re.MULTILINE)
    return float(found[1]) if found else 0.0


def _file_cache(group: Path, name: str) -> int:
    """Bytes of a control group's files in memory, which the kernel frees first."""
    lines = (line.split() for line in _text(group / "memory.stat").splitlines())
    return next((int(line[1]) for line in lines if line[0] == name and line[1].isdecimal()), 0)


def hugepages(nodes: Path = _NODES) -> tuple[Hugepages, ...]:
    """The hugepages of this host, of each NUMA node and size."""
    found = []
    for directory in sorted(nodes.glob("node[0-9]*/hugepages/hugepages-*kB")):
        total = _number(directory / "nr_hugepages") or 0
        if total:
            node = int(directory.parts[-3].removeprefix("node"))
            size = int(directory.name.removeprefix("hugepages-").removesuffix("kB")) * KIB
            free = _number(directory / "free_hugepages") or 0
            found.append(Hugepages(node, size, total, free))
    return tuple(found)


def require_hugepages(machine: str, size: int, *, free: bool) -> None:
    """Refuse a machine for whose memory this host has not enough hugepages, or `free` ones.

    Raises:
        CapacityError: it has not.
    """
    ours = [pages for pages in hugepages() if pages.size == HUGEPAGE]
    # Reserved pages are free until they are touched.
    reserved = (_number(_RESERVED_PAGES) or 0) if free else 0
    count = sum(pages.free if free else pages.total for pages in ours)
    have = max(0, count - reserved) * HUGEPAGE
    if size > have:
        state = "are free" if free else "are set aside"
        total = sum(pages.total for pages in ours) + -(-(size - have) // HUGEPAGE)
        raise CapacityError(
            f"{machine} needs {format_size(size)} in hugepages, of which"
            f" {format_size(have)} {state}",
            hint=f"set more aside: sudo sysctl vm.nr_hugepages={total}; or leave"
            " --memory-hugepages out",
            machine=machine,
        )


def require_merging(file: Path = _KSM) -> None:
    """Refuse to let this host merge memory if it does not do so.

    Raises:
        HostError: its kernel cannot, or was not told to.
    """
    if _number(file) != 1:
        raise HostError(
            "this host merges no memory: KSM is off, or not in its kernel",
            hint=f"turn it on: echo 1 | sudo tee {file}; or leave --memory-merge out",
        )


def _groups(surface: Surface) -> Iterator[Path]:
    """The control groups that this process is in, of all controllers, and those around them."""
    for _, controllers, path in memberships(surface, os.getpid()):
        roots = [surface.groups / each for each in controllers.split(",") if each]
        for root in roots or [surface.groups]:
            own = root / path.lstrip("/")
            # In a container the kernel may name a path that is not visible.
            for group in (own, *own.parents):
                if group.is_relative_to(root) and group.is_dir():
                    yield group


def _quotas(group: Path) -> Iterator[Decimal]:
    """The CPUs that a group allows, by each file that says so."""
    yield Decimal(len(os.sched_getaffinity(0)))
    words = _text(group / "cpu.max").split()
    if len(words) == 2 and words[0].isdecimal() and words[1].isdecimal() and int(words[1]):
        yield Decimal(words[0]) / Decimal(words[1])
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    if quota is not None and quota > 0 and period:
        yield Decimal(quota) / Decimal(period)


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
