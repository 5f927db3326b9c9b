"""What a running machine uses of its host, read from /proc (proc(5)) and its files."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.errors import EngineError, NotAnsweringError, StateError
from cerne.host.cell import Cell
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
    cell: Usage | None = None
    """What all of its processes use together; None without control groups."""
    guest: GuestMemoryUse | None = None
    """What its guest says of its memory; None where it has no balloon or does not answer."""
    hangs: NotAnsweringError | None = None
    """Why its process does not answer; None where it does."""


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
        raise state_error(record)
    used = measure(record, context.home.machine_directory(context.id))
    used = replace(used, cell=Cell(context.home.machine_group(context.id)).usage())
    try:
        return replace(used, guest=_guest_memory(context, record))
    except NotAnsweringError as error:
        return replace(used, hangs=error)


def _stat(record: Record) -> list[bytes]:
    """The fields of the process's stat file after its name, so that field 3 is the first."""
    ended = StateError(f"{record.name} has just ended", machine=record.name)
    if record.process is None or not record.process.alive():
        raise ended
    try:
        stat = Path(f"/proc/{record.process.pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ended from error
    return stat.rpartition(b")")[2].split()


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


def _guest_memory(context: MachineContext, record: Record) -> GuestMemoryUse | None:
    """Its guest's report of its memory; None if no process can be asked."""
    refuse_stopped(record)
    runs = record.state is State.RUNNING
    try:
        return context.instance(record).stats(runs=runs)
    except NotAnsweringError as error:
        if is_held(context.lock_path):
            # It answers to the command that works on it.
            return None
        raise hung(record) from error
    except EngineError:
        return None
