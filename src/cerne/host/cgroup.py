"""CPU weights of machines' processes, by a control group for each (cgroups(7)).

A weight is a value of cgroup v2's ``cpu.weight``: 1 to 10000, by default 100. `MachineGroup` makes
the groups, in a way that depends on the host. If systemd runs, it makes a scope. In a v2 hierarchy
without systemd, or one that is delegated to this user, the group is a sibling of the process's own
group (Documentation/admin-guide/cgroup-v2.rst); in a v1 hierarchy it is a child of it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cerne.errors import HostError
from cerne.spec.limits import DEFAULT_WEIGHT

_log = logging.getLogger(__name__)

_DEFAULT_SHARES = 1024
"""The default weight in v1."""
_PREFIX = "cerne-"
_SCOPE = ".scope"
_PATIENCE = 2.0
_MOMENT = 0.01
_MANAGER = (
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
)
_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Surface:
    """The paths at which the kernel and systemd have their interfaces."""

    groups: Path = Path("/sys/fs/cgroup")
    processes: Path = Path("/proc")
    systemd: Path = Path("/run/systemd/system")


HOST = Surface()


class MachineGroup:
    """The group of one machine's process.

    The path of a group is written to `note` before the group is made, so that the next command
    finds it if this one is killed.
    """

    def __init__(self, machine_id: str, note: Path, surface: Surface = HOST) -> None:
        self._name = f"{_PREFIX}{machine_id}"
        self._note = note
        self._surface = surface

    def weigh(self, pid: int, weight: int) -> None:
        """Give the process this weight, in its own group.

        Raises:
            HostError: this host does not allow it to this user; the process is in its former group.
        """
        hierarchy = _hierarchy(self._surface)
        place = self._noted()
        if place is not None:
            with _refusals():
                hierarchy.set_weight(place, weight)
            return
        with _refusals():
            place = hierarchy.place(pid, self._name)
        self._note.write_text(place)
        try:
            with _refusals():
                hierarchy.make(place, pid, weight)
        except HostError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the group, whose processes have ended; do nothing if there is no group.

        A process that is still in it goes back to its former group.
        """
        place = self._noted()
        if place is None:
            return
        try:
            _hierarchy(self._surface).remove(place)
        except (OSError, HostError) as error:
            _log.warning("the control group %s stays: %s", place, error)
        self._note.unlink(missing_ok=True)

    def _noted(self) -> str | None:
        try:
            return self._note.read_text() or None
        except FileNotFoundError:
            return None


def require_weights(surface: Surface = HOST) -> None:
    """Refuse a weight if this host does not allow weights to this user.

    Raises:
        HostError: it does not; the hint says how to allow them.
    """
    _hierarchy(surface).place(os.getpid(), _PREFIX)


class _Hierarchy(Protocol):
    """One way to make groups on a host. An OSError is the kernel's refusal."""

    def place(self, pid: int, name: str) -> str:
        """The place of a group of this name for a process; raises HostError if there is none."""

    def make(self, place: str, pid: int, weight: int) -> None:
        """Make a group of this weight there, and move the process into it."""

    def set_weight(self, place: str, weight: int) -> None:
        """Change a group's weight."""

    def remove(self, place: str) -> None:
        """Remove a group; do nothing if there is none."""


def _hierarchy(surface: Surface) -> _Hierarchy:
    if surface.systemd.is_dir() and (busctl := shutil.which("busctl")):
        return _Scopes(surface, busctl)
    if "cpu" in _words(surface.groups / "cgroup.controllers"):
        return _Unified(surface)
    if (surface.groups / "cpu" / "cpu.shares").exists():
        return _Legacy(surface)
    return _None()


class _Scopes:
    """Scopes of systemd, made over D-Bus; a scope ends with its last process."""

    def __init__(self, surface: Surface, busctl: str) -> None:
        self._surface = surface
        self._command = [busctl, *(() if os.geteuid() == 0 else ("--user",))]

    def place(self, pid: int, name: str) -> str:
        user = os.geteuid()
        if user != 0:
            own = f"user.slice/user-{user}.slice/user@{user}.service"
            controllers = self._surface.groups / own / "cgroup.controllers"
            # With v1 systemd needs no delegation.
            if "cpu" not in _words(controllers) and controllers.parent.parent.exists():
                raise _refusal(
                    "systemd does not let this user give weights to processes",
                    "as root: systemctl edit user@.service, with Delegate=cpu under [Service];"
                    " then log in again",
                )
        return name + _SCOPE

    def make(self, place: str, pid: int, weight: int) -> None:
        properties = ["3", "PIDs", "au", "1", str(pid), "CPUWeight", "t", str(weight)]
        properties += ["CollectMode", "s", "inactive-or-failed"]
        self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", place, "fail", *properties, "0")

    def set_weight(self, place: str, weight: int) -> None:
        change = ["true", "1", "CPUWeight", "t", str(weight)]
        self._call("SetUnitProperties", "sba(sv)", place, *change)

    def remove(self, place: str) -> None:
        """The scope has ended with its process."""

    def _call(self, *words: str) -> None:
        command = [*self._command, "call", *_MANAGER, *words]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise _refusal("systemd does not answer", "see: systemctl status") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise _refusal(f"systemd refuses: {said}", "see: systemctl status")


class _Files:
    """The code that both hierarchies of the kernel's files share."""

    weight_file: str

    def make(self, place: str, pid: int, weight: int) -> None:
        Path(place).mkdir(exist_ok=True)
        self.set_weight(place, weight)
        # This moves all threads of the process.
        _write(Path(place) / "cgroup.procs", str(pid))

    def set_weight(self, place: str, weight: int) -> None:
        _write(Path(place) / self.weight_file, str(self.number(weight)))

    def number(self, weight: int) -> int:
        """A weight as a number for the file."""
        return weight

    def remove(self, place: str) -> None:
        group = Path(place)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                group.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError as error:
                # Ending threads count for a moment longer than their process.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                self._empty(group)
                time.sleep(_MOMENT)

    def _empty(self, group: Path) -> None:
        for pid in _words(group / "cgroup.procs"):
            with contextlib.suppress(OSError):
                _write(group.parent / "cgroup.procs", pid)


class _Unified(_Files):
    """The one hierarchy of v2, in which a group contains either processes or groups."""

    weight_file = "cpu.weight"

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    def place(self, pid: int, name: str) -> str:
        own = self._own(pid)
        for parent in (own, *own.parents):
            if not parent.is_relative_to(self._surface.groups):
                break
            if self._may_hold(parent):
                return str(parent / name)
        raise _refusal(
            f"this user owns no control group above {own}",
            "run Cerne as root, or in a group that is delegated to you, with cpu in its"
            " cgroup.controllers",
        )

    def make(self, place: str, pid: int, weight: int) -> None:
        control = Path(place).parent / "cgroup.subtree_control"
        if "cpu" not in _words(control):
            _write(control, "+cpu")
        super().make(place, pid, weight)

    def _own(self, pid: int) -> Path:
        for _, controllers, path in memberships(self._surface, pid):
            if not controllers:
                return _below(self._surface.groups, path)
        return self._surface.groups

    def _may_hold(self, parent: Path) -> bool:
        if "cpu" not in _words(parent / "cgroup.controllers"):
            return False
        # Only the root group may contain both; it has no type.
        if (parent / "cgroup.type").exists() and _words(parent / "cgroup.procs"):
            return False
        needed = [parent, parent / "cgroup.procs"]
        if "cpu" not in _words(parent / "cgroup.subtree_control"):
            needed.append(parent / "cgroup.subtree_control")
        return all(os.access(each, os.W_OK) for each in needed)


class _Legacy(_Files):
    """The hierarchy of v1's cpu controller."""

    weight_file = "cpu.shares"

    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    def place(self, pid: int, name: str) -> str:
        root = self._surface.groups / "cpu"
        own = root
        for _, controllers, path in memberships(self._surface, pid):
            if "cpu" in controllers.split(","):
                own = _below(root, path)
        if not os.access(own, os.W_OK):
            raise _refusal(
                f"this user does not own the control group {own}",
                "run Cerne as root",
            )
        return str(own / name)

    def number(self, weight: int) -> int:
        return weight * _DEFAULT_SHARES // DEFAULT_WEIGHT


class _None:
    """A host without control groups for CPU time."""

    def place(self, pid: int, name: str) -> str:
        raise _refusal(
            "this host has no control groups for CPU time", "mount -t cgroup2 none /sys/fs/cgroup"
        )

    def make(self, place: str, pid: int, weight: int) -> None:
        self.place(pid, place)

    def set_weight(self, place: str, weight: int) -> None:
        self.place(0, place)

    def remove(self, place: str) -> None:
        """There is no group to remove."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refusal(
            f"the kernel refuses it: {error.filename}: {error.strerror}",
            "run Cerne as root, or in a control group that is delegated to you",
        ) from error


def _refusal(why: str, hint: str) -> HostError:
    return HostError(f"this host gives no CPU weight to a machine: {why}", hint=hint)


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
