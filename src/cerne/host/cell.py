"""The cell of a machine: control groups in which all of its processes start, and end.

It is made before the machine's first process, from a value in the plan, and limits them together.
The way depends on the host: scopes of systemd where it runs, else groups of version 2 (of the
host for root, or of a hierarchy that is delegated to the user), else groups of version 1.

A machine without limits runs on a host where this user may make no groups; one with limits does
not.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CapacityError, DamagedError, HostError
from cerne.host import cgroup
from cerne.host.cell_note import CellNote
from cerne.host.cgroup import HOST, Groups, Legacy, Surface, Unified, Usage
from cerne.host.finding import Finding
from cerne.host.limits import Limits, limits_of
from cerne.host.members import Members
from cerne.host.placement import pin_processes
from cerne.host.scope import WORDS, Scopes
from cerne.spec.cpu_list import parse_cpu_list
from cerne.units import MIB, format_size

if TYPE_CHECKING:
    from cerne.spec.resources import Resources

_log = logging.getLogger(__name__)

_PREFIX = "cerne-"
_MOUNT = "mount -t cgroup2 none /sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class CellPlan:
    """The cell of one machine."""

    machine_id: str
    note: Path
    """Where its note is (`CellNote`)."""
    resources: Resources
    """Its guarantees, limits and weights."""
    required: bool = True
    """Whether it does not run without its limits."""

    @property
    def limits(self) -> Limits:
        """The limits on this host."""
        return limits_of(self.resources)


@contextlib.contextmanager
def made(plan: CellPlan, surface: Surface = HOST) -> Iterator[None]:
    """Make a cell, in which the machine's processes start inside of this block.

    Raises:
        HostError: the machine has limits, and this host does not let this user set them.
    """
    cell = Cell(plan.note, surface)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_making(plan, surface))
            faults.step("cell made")
        except HostError as error:
            cell.end()
            if plan.required and _needs_cell(plan.resources):
                raise _refusal(error) from error
            _log.debug("there is no cell: %s", error.message)
            CellNote("", why=error.message).write(plan.note)
        except BaseException:
            cell.end()
            raise
        yield


def _making(plan: CellPlan, surface: Surface) -> contextlib.AbstractContextManager[None]:
    if Scopes.exist(surface):
        return _made_scope(plan, Scopes(surface))
    return _made_groups(plan, _groups(surface))


@contextlib.contextmanager
def _made_scope(plan: CellPlan, scopes: Scopes) -> Iterator[None]:
    unit = scopes.name(plan.machine_id)
    note = CellNote(WORDS, unit=unit, attach=scopes.attaching(unit))
    note.write(plan.note)
    faults.step("cell noted")
    with scopes.made(unit, plan.limits) as group:
        CellNote(WORDS, (group,), unit, note.attach).write(plan.note)
        yield


@contextlib.contextmanager
def _made_groups(plan: CellPlan, groups: Groups) -> Iterator[None]:
    places = groups.places(f"{_PREFIX}{plan.machine_id}")
    CellNote(groups.words, tuple(places)).write(plan.note)
    faults.step("cell noted")
    groups.make(places)
    faults.step("groups made")
    cgroup.apply(places, groups.settings(plan.limits))
    yield


class Cell:
    """The cell of a machine that was started."""

    def __init__(self, note: Path, surface: Surface = HOST) -> None:
        self._path = note
        self._surface = surface

    @property
    def words(self) -> str:
        """For people: ``cgroup v2``, or why there is none; empty if the machine does not run."""
        note = CellNote.read(self._path)
        if note is None:
            return ""
        return note.way or f"none: {note.why}"

    @property
    def groups(self) -> tuple[Path, ...]:
        """The directories of its control groups."""
        note = CellNote.read(self._path)
        return () if note is None else note.groups

    def give(self, resources: Resources) -> None:
        """Give it other limits: all of them, or none.

        Raises:
            HostError: this host does not let this user do so, or the machine has no cell.
            CapacityError: it uses more memory than that.
        """
        note, limits = CellNote.read(self._path), limits_of(resources)
        if note is None or not (note.groups or note.unit):
            if not _needs_cell(resources):
                self._pin(note, limits)
                return
            raise HostError(
                "the machine was started without control groups, which limit it",
                hint="restart it: cerne restart NAME",
            )
        _require_room(note, limits)
        given = replace(limits, placement=cgroup.released(note.groups, limits.placement))
        try:
            if note.unit:
                Scopes(self._surface).give(note.unit, given)
            else:
                cgroup.apply(note.groups, _groups(self._surface).settings(given))
            self._pin(note, limits)
        except HostError as error:
            raise _refusal(error) from error

    def _pin(self, note: CellNote | None, limits: Limits) -> None:
        """Pin its threads one by one if no cpuset does so."""
        groups = () if note is None else note.groups
        if cgroup.has_cpuset(groups):
            return
        cpus = limits.placement.cpus
        # Its processes are in its groups, or else those that registered themselves.
        members = Members(self._path.parent).all()
        registered = {each.process.pid for each in members if each.process and each.alive}
        pin_processes(
            cgroup.pids_in(groups) or registered,
            parse_cpu_list(cpus) if cpus else frozenset(os.sched_getaffinity(0)),
        )

    def end(self) -> None:
        """Kill all processes in it, and remove it; do nothing if there is none.

        Raises:
            HostError: a process does not end.
        """
        try:
            note = CellNote.read(self._path)
        except DamagedError as error:
            _log.warning("%s", error.message)
            note = self._note_of_now()
        if note is None:
            return
        if note.unit and any(group.is_dir() for group in note.groups):
            Scopes(self._surface).kill(note.unit)
        elif not note.unit:
            # No other group is ended, whatever the note says.
            cgroup.end([group for group in note.groups if group.name.startswith(_PREFIX)])
        self._path.unlink(missing_ok=True)

    def killed_for_memory(self) -> bool:
        """Whether the kernel has killed a process in it, at its memory limit."""
        note = CellNote.read(self._path)
        return note is not None and cgroup.killed_for_memory(note.groups)

    def _note_of_now(self) -> CellNote:
        """A note of the groups that a cell of this machine would have now.

        A scope of systemd ends with its processes by itself.
        """
        try:
            places = _groups(self._surface).places(f"{_PREFIX}{self._path.parent.name}")
        except HostError:
            places = []
        return CellNote("", tuple(places))

    def usage(self) -> Usage | None:
        """What its processes use together; None without a cell."""
        note = CellNote.read(self._path)
        return None if note is None or not note.groups else cgroup.usage(note.groups)


def require_limits(resources: Resources, surface: Surface = HOST) -> None:
    """Refuse resources that this host does not let this user enforce.

    Raises:
        HostError: it does not; the hint says how to allow it.
        CapacityError: this host does not have a CPU or a node, or does not let Cerne use it.
    """
    wanted = limits_of(resources)
    if not _needs_cell(resources):
        return
    try:
        if Scopes.exist(surface):
            _require_controllers(Scopes(surface).controllers(), wanted)
            return
        groups = _groups(surface)
        places = groups.places(_PREFIX)
        there = groups.controllers(places)
        needed = {each.controller for each in groups.settings(wanted) if each.needed}
        _require(needed - there, "turn them on in the group above: see cgroups(7)")
    except HostError as error:
        raise _refusal(error) from error


def cell_finding(surface: Surface = HOST) -> Finding:
    """Whether this user's machines have limits here, for the doctor."""
    topic = "limits of machines"
    if Scopes.exist(surface):
        there = sorted(Scopes(surface).controllers())
        return Finding(topic, f"by systemd: {', '.join(there) or 'none'}", bool(there))
    try:
        groups = _groups(surface)
        groups.places(_PREFIX)
    except HostError as error:
        return Finding(topic, f"none: {error.message}", False, error.hint)
    return Finding(topic, f"by {groups.words}", True)


def _groups(surface: Surface) -> Groups:
    """The version of control groups that has controllers.

    Raises:
        HostError: this host has none.
    """
    if (surface.groups / "cgroup.controllers").exists():
        return Unified(surface)
    if (surface.groups / "pids").is_dir() or (surface.groups / "cpu").is_dir():
        return Legacy(surface)
    raise HostError("this host has no control groups", hint=_MOUNT)


def _needs_cell(resources: Resources) -> bool:
    """Whether control groups alone enforce a value of these."""
    cpu, memory, disk = resources.cpu, resources.memory, resources.disk
    asked = (
        cpu.guarantee,
        cpu.limit,
        cpu.weight,
        cpu.numa_node,
        memory.limit,
        disk.weight,
        resources.pids,
    )
    return memory.swap is False or any(value is not None for value in asked)


def _require_controllers(there: frozenset[str], limits: Limits) -> None:
    needed = {each.controller for each in limits.unified() if each.needed}
    missing = needed - there
    hint = (
        f"as root: systemctl edit user@.service, with Delegate={' '.join(sorted(missing))}"
        " under [Service]; then log in again"
    )
    _require(missing, hint)


def _require(missing: set[str], hint: str) -> None:
    if missing:
        raise HostError(
            f"the controllers {', '.join(sorted(missing))} are not delegated to this user",
            hint=hint,
        )


def _require_room(note: CellNote, limits: Limits) -> None:
    """Refuse a limit of memory at which the kernel would kill the machine at once."""
    used = cgroup.unreclaimable(note.groups)
    if limits.memory_most is not None and used is not None and used > limits.memory_most:
        raise CapacityError(
            f"the machine's processes use {format_size(used)}, which is above the limit of"
            f" {format_size(limits.memory_most)}: the kernel would end them",
            hint=f"ask for at least --memory-limit {used // MIB + 64}M",
        )


def _refusal(error: HostError) -> HostError:
    return HostError(f"this host does not limit machines: {error.message}", hint=error.hint)
