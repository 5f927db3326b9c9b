"""What the rows of the store are to those who use it: plain values, apart from the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from cerne.host.process import ProcessIdentity

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address


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


_LARGEST_PID = 1 << 22
"""Of Linux (proc(5), ``/proc/sys/kernel/pid_max``)."""
_LAST_MOMENT = 253_402_300_800 - 86_400
"""Seconds from the epoch to the last day that Python's dates have."""
_SHOWN = 40
"""The most characters of a damaged value that a reason quotes."""


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
    """The command that changes what its process does: should it be killed, the process is asked."""
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


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """One network's row."""

    id: str
    name: str
    spec: str
    """Its specification, as JSON (`cerne.spec.named_network`)."""
    ipv4: str | None
    """Its IPv4 subnet; None if it has none of its own."""
    ipv6: str | None
    created: float
    holder: ProcessIdentity | None = None
    """The process that keeps it, as far as is known."""

    @property
    def gateway4(self) -> IPv4Address | None:
        """Its own IPv4 address, the first of the subnet."""
        from ipaddress import IPv4Network

        return None if self.ipv4 is None else IPv4Network(self.ipv4)[1]

    @property
    def gateway6(self) -> IPv6Address | None:
        """Its own IPv6 address, the first of the subnet."""
        from ipaddress import IPv6Network

        return None if self.ipv6 is None else IPv6Network(self.ipv6)[1]


@dataclass(frozen=True, slots=True)
class CardRow:
    """The row of one card of a machine on a network with a name."""

    machine: str
    """The machine's ID."""
    number: int
    """The card's number; 0 for the first."""
    network: str
    """The network's ID."""
    mac: str
    ipv4: str | None
    ipv6: str | None


class Subject(StrEnum):
    """What an event or an operation can be about."""

    MACHINE = "machine"
    SNAPSHOT = "snapshot"
    POOL = "pool"
    IMAGE = "image"
    NETWORK = "network"


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


TEMPLATE, IMAGE = "template", "image"
HELPERS = {TEMPLATE: "a template", IMAGE: "another image"}
"""The parents of machines that exist while something is made by them, and what that is."""


@dataclass(frozen=True, slots=True)
class ImageUsers:
    """What is made of an image, by name."""

    machines: tuple[str, ...]
    helpers: tuple[str, ...]
    """What machines of it that nobody made for themselves are for (`HELPERS`)."""
    snapshots: tuple[str, ...]
    pools: tuple[str, ...]
    """Those whose machines are of this image's name."""


_STATES: Mapping[object, State] = {state.value: state for state in State}


def record_of(row: sqlite3.Row) -> Record:
    """The record in a row of the machines.

    A value that none of its kind has does not stop other rows from being read. The record has
    another value instead, and the reason names it; without a known state or process it is
    ``failed``.
    """
    # A list reads a thousand rows: members of an enumeration are looked up in a table.
    state = _STATES.get(row["state"])
    process = process_of(row)
    unknown = [
        *_unlike(row, (_is_state,), ("state",)),
        *(_unlike(row, (_is_absent,), ("pid",)) if process is None else ()),
    ]
    damaged = [
        *unknown,
        *_unlike(row, (_is_moment,), ("created",)),
        *_unlike(row, (_is_absent, _is_moment), ("started", "ready")),
        *_unlike(row, (_is_amount,), ("cpus", "memory", "generation")),
    ]
    return Record(
        id=row["id"],
        name=row["name"],
        spec=row["spec"],
        image=row["image"],
        digest=row["digest"],
        cpus=amount_of(row["cpus"]),
        memory=amount_of(row["memory"]),
        state=State.FAILED if unknown or state is None else state,
        reason=f"its record is damaged: {', '.join(damaged)}" if damaged else row["reason"],
        engine=row["engine"],
        process=process,
        created=moment_of(row["created"]),
        started=None if row["started"] is None else moment_of(row["started"]),
        ready=None if row["ready"] is None else moment_of(row["ready"]),
        parent=row["parent"],
        untold=row["untold"],
        doing=row["doing"],
        client=process_of(row, "client_"),
        incomplete=bool(row["incomplete"]),
        generation=amount_of(row["generation"]),
        instance=row["instance"],
    )


def process_of(row: sqlite3.Row, prefix: str = "") -> ProcessIdentity | None:
    """The process in the columns of this prefix, if there is one that can exist."""
    pid, start_time, boot_id = (row[prefix + column] for column in ("pid", "start_time", "boot_id"))
    possible = _is_amount(pid) and _is_amount(start_time) and 0 < pid <= _LARGEST_PID
    return ProcessIdentity(pid, start_time, str(boot_id)) if possible else None


def moment_of(value: object) -> float:
    """A time of a row, in seconds since the epoch; 0 for what is not a time."""
    return float(str(value)) if _is_moment(value) else 0.0


def amount_of(value: object) -> int:
    """A number of a row that counts something; 0 for what is not such a number."""
    return value if isinstance(value, int) and value >= 0 else 0


def _unlike(
    row: sqlite3.Row, kinds: Sequence[Callable[[object], bool]], columns: Iterable[str]
) -> list[str]:
    """The columns whose values are of none of these kinds, each with its value."""
    return [
        f"{column} {str(row[column])[:_SHOWN]!r}"
        for column in columns
        if not any(kind(row[column]) for kind in kinds)
    ]


def _is_state(value: object) -> bool:
    return value in _STATES


def _is_absent(value: object) -> bool:
    return value is None


def _is_moment(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < _LAST_MOMENT


def _is_amount(value: object) -> bool:
    return isinstance(value, int) and value >= 0
