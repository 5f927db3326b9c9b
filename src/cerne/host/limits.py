"""What a machine's resources are in the units of control groups (cgroups(7))."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from cerne.host.placement import Placement, placement_of
from cerne.spec.limits import DEFAULT_WEIGHT, MOST_WEIGHT

if TYPE_CHECKING:
    from cerne.spec.resources import Resources

PERIOD = 100_000
"""Microseconds in which the quota of CPU time is used: the kernel's default."""
DEFAULT_PROCESSES = 1024
"""Processes and threads of a machine without a limit of its own.

QEMU and its helpers use at most 64 threads for a disk or a directory, and one for each CPU.
"""

_GUARANTEED_WEIGHT = 1000
"""The weight for each guaranteed CPU: ten times that of a machine without a guarantee."""
_SWAPPINESS = 60
"""The kernel's default of version 1's memory.swappiness."""


class Setting(NamedTuple):
    """A value for a file of a control group."""

    file: str
    """Its name, which begins with the controller's: ``cpu.max``."""
    text: str
    needed: bool = True
    """Whether it was asked for; false for the kernel's own default."""

    @property
    def controller(self) -> str:
        """The controller that has the file."""
        return self.file.partition(".")[0]


_LAST_PART = 32
"""The part of a limit of memory in which a machine is slowed down before it is ended."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits, guarantees and weights of one cell; None for no limit."""

    cpu_weight: int = DEFAULT_WEIGHT
    cpu_quota: int | None = None
    """Microseconds of each `PERIOD`."""
    memory_least: int = 0
    """Bytes that the kernel does not take back."""
    memory_most: int | None = None
    swap: bool = True
    processes: int | None = None
    """None for `DEFAULT_PROCESSES`."""
    disk_weight: int = DEFAULT_WEIGHT
    placement: Placement = field(default_factory=Placement)

    @property
    def memory_high(self) -> int | None:
        """Bytes above which the kernel takes memory back, and slows the processes down for it."""
        if self.memory_most is None:
            return None
        return self.memory_most - self.memory_most // _LAST_PART

    def unified(self) -> list[Setting]:
        """The values for version 2 (Documentation/admin-guide/cgroup-v2.rst)."""
        return [
            _setting("cpu.weight", self.cpu_weight, DEFAULT_WEIGHT),
            _setting("cpu.max", f"{_most(self.cpu_quota)} {PERIOD}", f"max {PERIOD}"),
            _setting("memory.min", self.memory_least, 0),
            Setting("memory.high", _most(self.memory_high), needed=False),
            _setting("memory.max", _most(self.memory_most), "max"),
            _setting("memory.swap.max", "max" if self.swap else 0, "max"),
            self._processes(),
            _setting("io.weight", f"default {self.disk_weight}", f"default {DEFAULT_WEIGHT}"),
            *self._placed("", ""),
        ]

    def legacy(self, cpus: str, nodes: str) -> list[Setting]:
        """The values for version 1 (Documentation/admin-guide/cgroup-v1).

        There a cpuset has no CPU and no node until these are written: all of Cerne's by default.
        """
        quota = -1 if self.cpu_quota is None else self.cpu_quota
        shares = self.cpu_weight * 1024 // DEFAULT_WEIGHT
        return [
            _setting("cpu.shares", max(2, shares), 1024),
            Setting("cpu.cfs_period_us", str(PERIOD), needed=False),
            _setting("cpu.cfs_quota_us", quota, -1),
            _setting("memory.soft_limit_in_bytes", self.memory_least or -1, -1),
            _setting("memory.limit_in_bytes", _most(self.memory_most, "-1"), "-1"),
            _setting("memory.swappiness", _SWAPPINESS if self.swap else 0, _SWAPPINESS),
            self._processes(),
            _setting("blkio.bfq.weight", min(self.disk_weight, 1000), DEFAULT_WEIGHT),
            # Version 2 always moves memory to other nodes.
            Setting("cpuset.memory_migrate", "1", needed=False),
            *self._placed(cpus, nodes),
        ]

    def properties(self) -> list[str]:
        """The properties of a scope (systemd.resource-control(5)); an empty value is a default."""
        quota = "" if self.cpu_quota is None else f"{self.cpu_quota * 100 / PERIOD:.1f}%"
        return [
            f"CPUWeight={_unless(self.cpu_weight, DEFAULT_WEIGHT)}",
            f"CPUQuota={quota}",
            f"MemoryMin={self.memory_least}",
            f"MemoryHigh={_most(self.memory_high, 'infinity')}",
            f"MemoryMax={_most(self.memory_most, 'infinity')}",
            f"MemorySwapMax={'infinity' if self.swap else 0}",
            f"TasksMax={self.processes or DEFAULT_PROCESSES}",
            f"IOWeight={_unless(self.disk_weight, DEFAULT_WEIGHT)}",
            f"AllowedCPUs={self.placement.cpus or ''}",
            f"AllowedMemoryNodes={self.placement.nodes or ''}",
        ]

    def _placed(self, cpus: str, nodes: str) -> list[Setting]:
        """The cpuset, in which these are the defaults; threads are pinned where there is none."""
        asked = self.placement.nodes
        return [
            Setting("cpuset.mems", asked or nodes, needed=asked is not None),
            Setting("cpuset.cpus", self.placement.cpus or cpus, needed=False),
        ]

    def _processes(self) -> Setting:
        count = self.processes or DEFAULT_PROCESSES
        return Setting("pids.max", str(count), needed=self.processes is not None)


def limits_of(resources: Resources) -> Limits:
    """The limits of a machine with these resources.

    Rates of its disks are not among them: its own devices hold these. A process whose write waits
    for the kernel's throttle does not even end when it is killed.

    Raises:
        CapacityError: this host does not have a CPU or a node, or does not let Cerne use it.
    """
    cpu, memory, disk = resources.cpu, resources.memory, resources.disk
    guaranteed = int((cpu.guarantee or 0) * _GUARANTEED_WEIGHT)
    return Limits(
        cpu_weight=min(MOST_WEIGHT, max(cpu.weight or DEFAULT_WEIGHT, guaranteed)),
        cpu_quota=None if cpu.limit is None else int(cpu.limit * PERIOD),
        memory_least=memory.guarantee or 0,
        memory_most=memory.limit,
        swap=memory.swap is not False,
        processes=resources.pids,
        disk_weight=disk.weight or DEFAULT_WEIGHT,
        placement=placement_of(cpu),
    )


def _setting(file: str, value: object, default: object) -> Setting:
    return Setting(file, str(value), needed=str(value) != str(default))


def _most(value: int | None, unlimited: str = "max") -> str:
    return unlimited if value is None else str(value)


def _unless(value: int, default: int) -> str:
    return "" if value == default else str(value)
