"""What the rows of the store are to those who use it: plain values, apart from the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from cerne.host.process import ProcessIdentity


class State(StrEnum):
    """Where a machine is between its definition and its removal."""

    DEFINED = "defined"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    SAVING = "saving"
    """Its memory is being saved, for a snapshot, a fork or its suspension."""
    SUSPENDED = "suspended"
    """Its memory is on the disk; it has no process, and goes on from there when it is woken."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def live(self) -> bool:
        """Whether a machine in this state has a process, or is about to."""
        return self in LIVE


LIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.SAVING, State.STOPPING})


@dataclass(frozen=True, slots=True)
class Record:
    """One machine's row. Times are seconds since the epoch."""

    id: str
    name: str
    spec: str
    """The machine's specification, as JSON."""
    image: str
    digest: str
    """The image's digest; its name may mean another image later."""
    cpus: int
    memory: int
    """Bytes."""
    state: State
    reason: str
    """Why it failed or stopped; empty otherwise."""
    engine: str
    """The engine that it last ran on; empty before its first start."""
    process: ProcessIdentity | None
    created: float
    started: float | None
    ready: float | None
    """When this run's guest was ready; None until then."""
    parent: str = ""
    """The ID of the machine that it was forked or restored from; empty otherwise."""
    untold: str = ""
    """What its guest must still be told (`cerne.manager.machines.telling`), with commas between."""
    doing: str = ""
    """The command that changes whether its vCPUs run: should it be killed, its process is asked."""
    client: ProcessIdentity | None = None
    """The process that it is bound to, and without which it is removed; None where it stays."""

    incomplete: bool = False
    """Whether it goes on from another's memory and has not been told yet who it is.

    If the command that makes it is interrupted, it is removed, whether it runs or not.
    """
    generation: int = 1
    """Counts the changes of the row."""
    instance: str = ""
    """What its engine needs to reach it while it runs, as JSON (`cerne.engine.record`).

    Empty where it has no process, or was started by a Cerne that kept none.
    """


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One snapshot's row."""

    id: str
    name: str
    layer: str
    """The ID of the layer that its disk is; empty where it has none."""
    manifest: str
    """What is in it, as JSON (`cerne.manager.snapshots.manifest`)."""
    created: float


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One pool's row."""

    name: str
    image: str
    """The name of the image that its machines are made of."""
    spec: str
    """What its machines are, as JSON."""
    ready: int
    """How many of them are to be ready."""
    created: float


class Subject(StrEnum):
    """What an event or an operation can be about."""

    MACHINE = "machine"
    SNAPSHOT = "snapshot"
    POOL = "pool"
    IMAGE = "image"


class OperationState(StrEnum):
    """Where a long operation is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class OperationRow:
    """One long operation's row. Times are seconds since the epoch."""

    id: str
    kind: str
    """What it does, such as ``image build``."""
    subject_kind: str
    """What it is about, of `Subject`."""
    subject: str
    """The name of that, as it was asked for: it may not be there before the end."""
    state: OperationState
    process: ProcessIdentity | None
    """The process that works on it."""
    created: float
    stage: str = ""
    """The present step, or the last one."""
    done: int = 0
    """How much of the step is done."""
    total: int | None = None
    """The whole amount of the step; None where it is not known."""
    result: Mapping[str, str] = field(default_factory=dict)
    """What it made, such as ``{"machine": "web"}``."""
    error: Mapping[str, str] | None = None
    """Why it failed: ``code``, ``message`` and ``hint``; None where it did not."""
    cancel: bool = False
    """Whether its process was asked to cancel it."""
    ended: float | None = None


Detail = Mapping[str, str | int]
"""What else is known of an event: by name, such as ``{"pid": 17}``."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""

    number: int
    time: float
    """Seconds since the epoch."""
    subject_kind: str
    """What it happened to, of `Subject`."""
    subject: str
    """The ID of that."""
    name: str
    """The name that it had then."""
    kind: str
    """What happened, such as ``started``."""
    detail: Detail
    operation: str | None = None
    """The ID of the operation that it is of; None where it is of none."""

    @property
    def words(self) -> str:
        """The detail as a person reads it; empty where there is none."""
        said = (_WORDS.get(key, "{}").format(value) for key, value in self.detail.items())
        return ", ".join(said)


_WORDS = {"pid": "process {}", "to": "to {}"}


@dataclass(frozen=True, slots=True)
class ImageUsers:
    """What is made of an image, by name."""

    machines: tuple[str, ...]
    snapshots: tuple[str, ...]
    pools: tuple[str, ...]
    """Those whose machines are of this image's name."""


def record_of(row: sqlite3.Row) -> Record:
    """The record in a row of the machines; one with a state that none has is ``failed``."""
    state = State(row["state"]) if row["state"] in iter(State) else None
    return Record(
        id=row["id"],
        name=row["name"],
        spec=row["spec"],
        image=row["image"],
        digest=row["digest"],
        cpus=row["cpus"],
        memory=row["memory"],
        state=state or State.FAILED,
        reason=row["reason"] if state else f"its record is damaged: state {row['state']!r}",
        engine=row["engine"],
        process=process_of(row),
        created=row["created"],
        started=row["started"],
        ready=row["ready"],
        parent=row["parent"],
        untold=row["untold"],
        doing=row["doing"],
        client=process_of(row, "client_"),
        incomplete=bool(row["incomplete"]),
        generation=row["generation"],
        instance=row["instance"],
    )


def process_of(row: sqlite3.Row, prefix: str = "") -> ProcessIdentity | None:
    """The process in the columns of this prefix, if there is one."""
    if row[f"{prefix}pid"] is None:
        return None
    return ProcessIdentity(*(row[prefix + column] for column in ("pid", "start_time", "boot_id")))
