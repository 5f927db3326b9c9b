"""Control groups as files of the kernel, of both versions (cgroups(7)).

In version 2 a machine has one group, a sibling of the group of the command that makes it, because
only a group without processes of its own gives controllers to the groups in it
(Documentation/admin-guide/cgroup-v2.rst). In version 1 it has one for each controller, in the
command's own groups.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cerne.errors import HostError
from cerne.host.limits import Limits, Setting
from cerne.host.placement import Placement
from cerne.host.process import ProcessIdentity
from cerne.spec.cpu_list import format_cpu_list

_PATIENCE = 10.0
"""Seconds in which killed processes leave their group."""
_MOMENT = 0.01
_CONTROLLERS = ("cpu", "memory", "pids", "io", "cpuset")
_LEGACY_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids", "blkio", "cpuset")
_DELEGATED = "run Cerne as root, or in a control group that is delegated to you"


@dataclass(frozen=True, slots=True)
class Surface:
    """The paths at which the kernel and systemd have their interfaces."""

    groups: Path = Path("/sys/fs/cgroup")
    processes: Path = Path("/proc")
    systemd: Path = Path("/run/systemd/system")


HOST = Surface()


@dataclass(frozen=True, slots=True)
class Usage:
    """What all processes of a cell use together; None for a value that the host does not count."""

    cpu_seconds: float | None
    memory: int | None
    """Bytes, with the host's cache of the files that they read and wrote."""
    processes: int | None
    """Processes and threads."""
    pressure: dict[str, float]
    """The percentage of the last 10 seconds in which some of them waited for ``cpu``, ``memory`` or
    ``io`` (Documentation/accounting/psi.rst)."""


class Groups(Protocol):
    """One version of control groups on a host."""

    words: str
    """Its name for people."""

    def places(self, name: str) -> list[Path]:
        """Where the groups of this name are made.

        Raises:
            HostError: this host lets this user make none.
        """

    def controllers(self, places: Sequence[Path]) -> frozenset[str]:
        """The controllers that groups at these places have."""

    def make(self, places: Sequence[Path]) -> None:
        """Make the groups.

        Raises:
            HostError: the kernel refuses it.
        """

    def settings(self, limits: Limits) -> list[Setting]:
        """The limits as values of the groups' files."""


class Unified:
    """The one hierarchy of version 2."""

    words = "cgroup v2"

    def __init__(self, surface: Surface = HOST) -> None:
        self._surface = surface

    def places(self, name: str) -> list[Path]:
        """A sibling of this process's group, or of one that has it in it."""
        own = self._own()
        for parent in (own, *own.parents):
            if not parent.is_relative_to(self._surface.groups):
                break
            if self._may_divide(parent):
                return [parent / name]
        raise HostError(
            f"this user owns no control group above {own} that has controllers and no processes",
            hint=_DELEGATED,
        )

    def controllers(self, places: Sequence[Path]) -> frozenset[str]:
        """Those that the parent has."""
        return frozenset(_words(places[0].parent / "cgroup.controllers"))

    def make(self, places: Sequence[Path]) -> None:
        """Make the group, with all controllers that there are."""
        (place,) = places
        control = place.parent / "cgroup.subtree_control"
        wanted = self.controllers(places) & _turned_on()
        with _refusals():
            for controller in sorted(wanted - frozenset(_words(control))):
                _write(control, f"+{controller}")
            place.mkdir(exist_ok=True)

    def settings(self, limits: Limits) -> list[Setting]:
        """The limits as values of version 2."""
        return limits.unified()

    def _own(self) -> Path:
        for _, controllers, path in memberships(self._surface, os.getpid()):
            if not controllers:
                return _below(self._surface.groups, path)
        return self._surface.groups

    def _may_divide(self, parent: Path) -> bool:
        there = set(_words(parent / "cgroup.controllers")) & _turned_on()
        if not there:
            return False
        # Only the root group may contain both groups and processes; it has no type.
        if (parent / "cgroup.type").exists() and _words(parent / "cgroup.procs"):
            return False
        needed = [parent, parent / "cgroup.procs"]
        if there - set(_words(parent / "cgroup.subtree_control")):
            needed.append(parent / "cgroup.subtree_control")
        return all(os.access(each, os.W_OK) for each in needed)


def _turned_on() -> frozenset[str]:
    """The controllers that are turned on for groups of version 2: cpusets by root alone.

    Threads of other users' machines are pinned one by one (`cerne.host.placement`).
    """
    return frozenset(_CONTROLLERS) - (frozenset() if os.geteuid() == 0 else {"cpuset"})


class Legacy:
    """The hierarchies of version 1."""

    words = "cgroup v1"

    def __init__(self, surface: Surface = HOST) -> None:
        self._surface = surface

    def places(self, name: str) -> list[Path]:
        """A child of each of this process's groups in which this user may make one."""
        found: list[Path] = []
        for controller in _LEGACY_CONTROLLERS:
            # Two controllers may share a hierarchy, which has two names.
            root = (self._surface.groups / controller).resolve()
            if not root.is_dir():
                continue
            own = self._own(controller, root)
            if os.access(own, os.W_OK) and own / name not in found:
                found.append(own / name)
        if not found:
            raise HostError("this user owns no control group", hint="run Cerne as root")
        return found

    def controllers(self, places: Sequence[Path]) -> frozenset[str]:
        """Those in whose hierarchies the places are."""
        return frozenset(
            controller
            for controller in _LEGACY_CONTROLLERS
            for place in places
            if place.is_relative_to((self._surface.groups / controller).resolve())
        )

    def make(self, places: Sequence[Path]) -> None:
        """Make a group for each controller."""
        with _refusals():
            for place in places:
                place.mkdir(exist_ok=True)
                if (place / "cpuset.cpus").exists():
                    # A group that a process makes inside has CPUs and nodes too then.
                    _write(place / "cgroup.clone_children", "1")

    def settings(self, limits: Limits) -> list[Setting]:
        """The limits as values of version 1."""
        root = self._surface.groups / "cpuset"
        nodes = _words(self._own("cpuset", root.resolve()) / "cpuset.mems")
        return limits.legacy(format_cpu_list(os.sched_getaffinity(0)), "".join(nodes))

    def _own(self, controller: str, root: Path) -> Path:
        for _, controllers, path in memberships(self._surface, os.getpid()):
            if controller in controllers.split(","):
                return _below(root, path)
        return root


def apply(groups: Sequence[Path], settings: Iterable[Setting]) -> None:
    """Give groups these values: all of them, or none.

    Raises:
        HostError: the kernel refuses a value, or does not have it.
    """
    former: list[tuple[Path, str]] = []
    try:
        for setting in settings:
            file = _file_of(groups, setting)
            if file is None:
                continue
            before = file.read_text()
            with _refusals():
                # An empty text reaches the kernel only with the end of its line.
                _write(file, setting.text or "\n")
            former.append((file, before))
    except BaseException:
        for file, before in reversed(former):
            with contextlib.suppress(OSError):
                _write(file, before.strip() or _around(file) or "\n")
        raise


_ENDING = (("pids.max", "0"), ("cpu.max", "max"), ("cpu.cfs_quota_us", "-1"))


def end(groups: Sequence[Path]) -> None:
    """Kill all processes in groups and in the groups inside, and remove the groups.

    It does nothing where there is no group.

    Raises:
        HostError: a process does not end.
    """
    groups = [group for group in groups if group.is_dir()]
    for group in groups:
        # The limits of the outer group hold for those inside. What is in it does not fork while it
        # is killed, and has the CPU time that its end takes.
        for file, text in _ENDING:
            with contextlib.suppress(OSError):
                _write(group / file, text)
    deadline = time.monotonic() + _PATIENCE
    for group in groups:
        while not _removed(group):
            if time.monotonic() > deadline:
                raise HostError(
                    f"the processes in {group} were killed and do not end",
                    hint="they hang in the kernel: see dmesg",
                )
            _kill(group)
            time.sleep(_MOMENT)


def has_cpuset(groups: Sequence[Path]) -> bool:
    """Whether the kernel keeps the processes of groups on CPUs of their own."""
    return any((group / "cpuset.cpus").exists() for group in groups)


def released(groups: Sequence[Path], placement: Placement) -> Placement:
    """What a cpuset of version 2 that has processes is given for a placement.

    The kernel does not empty it again: in place of nothing it has what the group around has.
    """
    for group in groups:
        cpus, nodes = group / "cpuset.cpus", group / "cpuset.mems"
        if _words(cpus):
            placement = replace(placement, cpus=placement.cpus or _around(cpus) or None)
        if _words(nodes):
            placement = replace(placement, nodes=placement.nodes or _around(nodes) or None)
    return placement


def _around(file: Path) -> str:
    """What the group around has of a cpuset's file; empty in version 1, and for other files."""
    return "".join(_words(file.parent.parent / f"{file.name}.effective"))


def pids_in(groups: Sequence[Path]) -> frozenset[int]:
    """The processes in groups."""
    return frozenset(int(pid) for group in groups for pid in _words(group / "cgroup.procs"))


def usage(groups: Sequence[Path]) -> Usage:
    """What the processes in groups use."""
    return Usage(
        cpu_seconds=_cpu_seconds(groups),
        memory=_number(groups, "memory.current", "memory.usage_in_bytes"),
        processes=_number(groups, "pids.current"),
        pressure={
            what: share
            for what in ("cpu", "memory", "io")
            if (share := _pressure(groups, f"{what}.pressure")) is not None
        },
    )


def unreclaimable(groups: Sequence[Path]) -> int | None:
    """Bytes of memory that the kernel can only take back by swap; None if it does not say."""
    for group in groups:
        with contextlib.suppress(OSError, ValueError):
            stat = _pairs((group / "memory.stat").read_text())
            # Version 1 has other names, and counts the groups inside apart.
            anonymous = stat.get("anon", stat.get("total_rss"))
            if anonymous is not None:
                return anonymous + stat.get("shmem", stat.get("total_shmem", 0))
    return None


def killed_for_memory(groups: Sequence[Path]) -> bool:
    """Whether the kernel has killed a process in them, because they reached their memory limit."""
    for group in groups:
        # The second is version 1's.
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError, ValueError):
                if _pairs((group / file).read_text()).get("oom_kill", 0) > 0:
                    return True
    return False


def _file_of(groups: Sequence[Path], setting: Setting) -> Path | None:
    """The file of a setting.

    Raises:
        HostError: there is none, and the setting is needed.
    """
    for group in groups:
        if (group / setting.file).exists():
            return group / setting.file
    if setting.needed:
        raise HostError(
            f"this host's control groups do not have {setting.file}",
            hint="turn its controller on: see cgroups(7)",
        )
    return None


def _removed(group: Path) -> bool:
    """Remove a group and those inside; return False while one has processes."""
    for each in _innermost_first(group):
        try:
            each.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            # Ending threads count for a moment longer than their process.
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise HostError(
                    f"removing the control group {each} failed: {error.strerror}", hint=_DELEGATED
                ) from error
            return False
    return True


def _innermost_first(group: Path) -> Iterator[Path]:
    """A group and all groups inside, each before the group that it is in."""
    for path, _, _ in os.walk(group, topdown=False):
        yield Path(path)


def _kill(group: Path) -> None:
    """Kill all processes in a group and in those inside, by the kernel's own way if it has one."""
    with contextlib.suppress(OSError):
        _write(group / "cgroup.kill", "1")
        return
    for each in _innermost_first(group):
        _kill_members(each)


def _kill_members(group: Path) -> None:
    for pid in _words(group / "cgroup.procs"):
        process = ProcessIdentity.of(int(pid))
        # The pid may have been reused since: only one that is still in the group is killed.
        if process is not None and pid in _words(group / "cgroup.procs"):
            process.send(signal.SIGKILL)


def _cpu_seconds(groups: Sequence[Path]) -> float | None:
    for group in groups:
        with contextlib.suppress(OSError, ValueError):
            return int((group / "cpuacct.usage").read_text()) / 1e9
    for group in groups:
        with contextlib.suppress(OSError, ValueError, KeyError):
            return _pairs((group / "cpu.stat").read_text())["usage_usec"] / 1e6
    return None


def _pairs(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def _number(groups: Sequence[Path], *files: str) -> int | None:
    for group in groups:
        for file in files:
            with contextlib.suppress(OSError, ValueError):
                return int((group / file).read_text())
    return None


def _pressure(groups: Sequence[Path], file: str) -> float | None:
    for group in groups:
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = (group / file).read_text().split()
            return float(words[1].removeprefix("avg10="))
    return None


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HostError(
            f"the kernel refuses it: {error.filename}: {error.strerror}", hint=_DELEGATED
        ) from error


def memberships(surface: Surface, pid: int) -> Iterator[tuple[str, str, str]]:
    """A process's groups: hierarchy, controllers, path (proc(5), /proc/PID/cgroup)."""
    for line in (surface.processes / str(pid) / "cgroup").read_text().splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        yield hierarchy, controllers, path


def _below(root: Path, path: str) -> Path:
    # In a container the kernel may name a path that is not visible.
    found = root / path.lstrip("/")
    return found if found.is_dir() else root


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _write(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        os.close(descriptor)
