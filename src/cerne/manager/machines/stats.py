"""What a running machine uses of its host: from /proc, control groups, its files and its engine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from cerne.engine.base import Activity
from cerne.errors import EngineError, NotAnsweringError, StateError
from cerne.host.cell import Cell
from cerne.host.members import Members
from cerne.host.usage import cpu_seconds, proportional_memory, stat_fields, waited_seconds
from cerne.manager.lock import is_held
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.recovery import current_record
from cerne.manager.machines.states import hung, refuse_stopped, state_error
from cerne.manager.store import Record, State

if TYPE_CHECKING:
    from cerne.engine.base import GuestMemoryUse
    from cerne.errors import NotAnsweringError
    from cerne.host.cgroup import Usage
    from cerne.manager.store import Record


@dataclass(frozen=True, slots=True)
class Stats:
    """What one machine uses of its host."""

    uptime: float
    """Seconds since its process was started."""
    cpu_seconds: float
    """CPU time of its process, vCPUs and devices together."""
    resident: int
    """Bytes of the host's memory that its process holds, guest memory and all."""
    memory: int
    """Bytes of guest memory that it was given."""
    disk: int
    """Bytes of the host's disk that its own files take."""
    threads: int
    """Threads of its process."""
    all_cpu_seconds: float = 0.0
    """CPU time of all its processes."""
    proportional: int | None = None
    """Bytes of the host's memory that all its processes hold, where of a page that several
    processes share, each has its part; None if this user may not see that."""
    steal_seconds: float | None = None
    """Time in which its vCPUs could run and got no CPU of the host; None if that is unknown."""
    activity: Activity | None = None
    """What its devices and vCPUs have done; None if it does not answer."""
    measured: float = 0.0
    """The clock's seconds (time.monotonic) at which this was measured."""
    cell: Usage | None = None
    """What all of its processes use together; None without control groups."""
    guest: GuestMemoryUse | None = None
    """What its guest says of its memory; None where it has no balloon or does not answer."""
    hangs: NotAnsweringError | None = None
    """Why its process does not answer; None where it does."""

    @property
    def balloon(self) -> int | None:
        """Bytes of its guest's memory that its balloon holds; None without one."""
        return None if self.guest is None else max(0, self.memory - self.guest.given)

    def since(self, before: Stats) -> Rates:
        """What it used a second since another measurement of the same machine."""
        seconds = self.measured - before.measured

        def rate(now: float | None, then: float | None) -> float | None:
            # It counts from 0 again if its process is another one.
            if now is None or then is None or now < then or seconds <= 0:
                return None
            return (now - then) / seconds

        now, then = self.activity or _NOTHING, before.activity or _NOTHING
        return Rates(
            cpus=rate(self.all_cpu_seconds, before.all_cpu_seconds),
            steal=rate(self.steal_seconds, before.steal_seconds),
            disk_read=rate(now.disk_read, then.disk_read),
            disk_written=rate(now.disk_written, then.disk_written),
            disk_requests=rate(_requests(now), _requests(then)),
            received=rate(now.received, then.received),
            sent=rate(now.sent, then.sent),
            exits=rate(now.exits, then.exits),
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine used a second between two measurements; None for what is unknown."""

    cpus: float | None
    """CPUs of the host: 1.5 is all the time of one, and half the time of another."""
    steal: float | None
    """CPUs that its vCPUs waited for."""
    disk_read: float | None
    """Bytes."""
    disk_written: float | None
    disk_requests: float | None
    received: float | None
    """Bytes."""
    sent: float | None
    exits: float | None


_NOTHING = Activity()


def _requests(activity: Activity) -> int | None:
    if activity.disk_reads is None or activity.disk_writes is None:
        return None
    return activity.disk_reads + activity.disk_writes


def measure(record: Record, directory: Path) -> Stats:
    """Read what a machine uses now.

    Raises:
        StateError: it has just ended.
    """
    fields = _stat(record)
    ticks = os.sysconf("SC_CLK_TCK")
    return Stats(
        uptime=max(0.0, time.time() - (record.started or time.time())),
        cpu_seconds=(int(fields[11]) + int(fields[12])) / ticks,
        resident=int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        memory=record.memory,
        disk=allocated(directory),
        threads=int(fields[17]),
    )


def stats(context: MachineContext) -> Stats:
    """What it uses of this host now (see `Machine.stats`)."""
    record = current_record(context)
    if record.state not in (State.RUNNING, State.PAUSED):
        raise state_error(record, State.RUNNING, State.PAUSED)
    used = measure(record, context.home.machine_directory(context.id))
    used = replace(used, **_of_processes(context))
    try:
        guest, activity = _answers(context, record)
    except NotAnsweringError as error:
        return replace(used, hangs=error)
    return replace(used, guest=guest, activity=activity, steal_seconds=_steal(record, activity))


class _OfProcesses(TypedDict):
    """What all processes of a machine use together."""

    cell: Usage | None
    all_cpu_seconds: float
    proportional: int | None
    measured: float


def _of_processes(context: MachineContext) -> _OfProcesses:
    cell = Cell(context.home.machine_group(context.id)).usage()
    processes = Members(context.home.machine_runtime(context.id)).alive()
    counted = None if cell is None else cell.cpu_seconds
    return _OfProcesses(
        cell=cell,
        all_cpu_seconds=cpu_seconds(processes) if counted is None else counted,
        measured=time.monotonic(),
        proportional=proportional_memory(processes),
    )


def _steal(record: Record, activity: Activity | None) -> float | None:
    if activity is None or record.process is None:
        return None
    return waited_seconds(record.process.pid, activity.vcpu_threads)


def _stat(record: Record) -> list[bytes]:
    """The fields of the process's stat file after its name, so that field 3 is the first."""
    ended = StateError(f"{record.name} has just ended", machine=record.name)
    if record.process is None or not record.process.alive():
        raise ended
    try:
        return stat_fields(record.process.pid)
    except OSError as error:
        raise ended from error


def allocated(directory: Path) -> int:
    """Bytes of the host's disk that the files of a directory take, which may be vanishing."""
    try:
        return sum(_allocated(path) for path in directory.iterdir())
    except FileNotFoundError:
        return 0


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _answers(
    context: MachineContext, record: Record
) -> tuple[GuestMemoryUse | None, Activity | None]:
    """Its guest's report of its memory, and its activity; None if no process can be asked."""
    refuse_stopped(record)
    runs = record.state is State.RUNNING
    try:
        instance = context.instance(record)
        return instance.stats(runs=runs), instance.activity()
    except NotAnsweringError as error:
        if is_held(context.lock_path):
            # It answers to the command that works on it.
            return None, None
        raise hung(record) from error
    except EngineError:
        return None, None
