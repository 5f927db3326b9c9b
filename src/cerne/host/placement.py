"""Where a machine runs on its host: the CPUs and the NUMA node that its processes may use.

The kernel enforces it by cpusets (cpuset(7); ``cpuset.cpus`` and ``cpuset.mems`` in cgroup v2). If
the machine's control groups have none, its threads are pinned one by one (sched_setaffinity(2)).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.errors import CapacityError, InputError
from cerne.host.finding import Finding
from cerne.spec.cpu_list import format_cpu_list, parse_cpu_list

if TYPE_CHECKING:
    from cerne.spec.resources import CpuResources

_SYSTEM = Path("/sys/devices/system")
_STATUS = Path("/proc/self/status")
_ROUNDS = 100
"""How often new threads are looked for; a thread inherits the CPUs of the one that started it."""


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node of the host that has memory."""

    number: int
    cpus: frozenset[int]
    """Its CPUs that Cerne may use."""
    allowed: bool
    """Whether Cerne may use its memory."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The CPUs and NUMA nodes of this host."""

    online: frozenset[int]
    allowed: frozenset[int]
    """The CPUs that this process may use."""
    nodes: tuple[Node, ...]

    @property
    def words(self) -> str:
        """For people: the CPUs and the nodes for machines."""
        nodes = "; ".join(
            f"node {node.number}: CPUs {format_cpu_list(node.cpus) or 'none'}"
            for node in self.nodes
            if node.allowed
        )
        return f"CPUs {format_cpu_list(self.allowed)}; NUMA {nodes}"


@dataclass(frozen=True, slots=True)
class Placement:
    """The CPUs and the nodes of a machine, as cpusets have them; None for all that Cerne has."""

    cpus: str | None = None
    nodes: str | None = None


def topology(system: Path = _SYSTEM, status: Path = _STATUS) -> Topology:
    """The CPUs and nodes of this host, and those that this process may use."""
    allowed = frozenset(os.sched_getaffinity(0))
    memory = _listed(_line(status, "Mems_allowed_list:"))
    numbers = _listed(_text(system / "node/has_memory"))
    nodes = tuple(
        Node(
            number,
            _listed(_text(system / f"node/node{number}/cpulist")) & allowed,
            number in memory,
        )
        for number in sorted(numbers)
    )
    # A kernel without NUMA has one node, which it does not name.
    whole = (Node(0, allowed, allowed=True),)
    return Topology(_listed(_text(system / "cpu/online")) or allowed, allowed, nodes or whole)


def placement_finding() -> Finding:
    """The CPUs and nodes to which machines may be pinned, as a line of the doctor's report."""
    return Finding("placement", topology().words)


def placement_of(asked: CpuResources, host: Topology | None = None) -> Placement:
    """The placement of a machine with these resources on this host.

    Raises:
        CapacityError: this host does not have a CPU or a node, or does not let Cerne use it.
    """
    if asked.pin is None and asked.numa_node is None:
        return Placement()
    host = host or topology()
    cpus = None
    if asked.pin is not None:
        cpus = parse_cpu_list(asked.pin)
        _require_cpus(cpus, host)
    if asked.numa_node is not None:
        node = _node(asked.numa_node, host)
        cpus = cpus or node.cpus
        if not cpus:
            raise CapacityError(
                f"the NUMA node {node.number} has no CPU that Cerne may use",
                hint=f"name CPUs too: --cpu-pin {format_cpu_list(host.allowed)}",
            )
    nodes = None if asked.numa_node is None else str(asked.numa_node)
    return Placement(None if cpus is None else format_cpu_list(cpus), nodes)


def pin_processes(pids: Iterable[int], cpus: frozenset[int]) -> None:
    """Have all threads of these processes run on these CPUs alone, and what they start.

    Raises:
        InputError: the kernel does not allow it.
    """
    for pid in pids:
        done: set[int] = set()
        for _ in range(_ROUNDS):
            new = [thread for thread in _threads(pid) if thread not in done]
            if not new:
                break
            for thread in new:
                _pin(thread, cpus)
            done.update(new)


def _pin(thread: int, cpus: frozenset[int]) -> None:
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:
        return
    except OSError as error:
        raise InputError(
            f"pinning the thread {thread} to the CPUs {format_cpu_list(cpus)} failed:"
            f" {error.strerror}",
            hint="leave out --cpu-pin, or run Cerne as root",
        ) from error


def _threads(pid: int) -> Iterator[int]:
    # The process may have ended.
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield int(thread.name)


def _require_cpus(cpus: frozenset[int], host: Topology) -> None:
    there = format_cpu_list(host.allowed)
    if missing := cpus - host.online:
        raise CapacityError(
            f"this host has no CPU {format_cpu_list(missing)} that is online",
            hint=f"Cerne may use these: --cpu-pin {there}",
        )
    if denied := cpus - host.allowed:
        raise CapacityError(
            f"this host does not let Cerne use the CPU {format_cpu_list(denied)}",
            hint=f"Cerne may use these: --cpu-pin {there}",
        )


def _node(number: int, host: Topology) -> Node:
    usable = [node for node in host.nodes if node.allowed]
    there = format_cpu_list(node.number for node in usable)
    for node in host.nodes:
        if node.number == number and node in usable:
            return node
        if node.number == number:
            raise CapacityError(
                f"this host does not let Cerne use the memory of the NUMA node {number}",
                hint=f"Cerne may use these: --numa-node {there}",
            )
    raise CapacityError(
        f"this host has no NUMA node {number} with memory", hint=f"it has these: {there}"
    )


def _listed(text: str) -> frozenset[int]:
    try:
        return parse_cpu_list(text)
    except InputError:
        return frozenset()


def _line(file: Path, name: str) -> str:
    for line in _text(file).splitlines():
        if line.startswith(name):
            return line.removeprefix(name).strip()
    return ""


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
