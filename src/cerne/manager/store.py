"""What is known of machines across commands: SQLite in WAL mode, one transaction a change.

The store says what was asked for and what was last seen. Whether a machine runs is told by its
process alone (`ProcessIdentity`), never by a row.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from itertools import count
from pathlib import Path

from cerne.errors import (
    CapacityError,
    ConflictError,
    DamagedError,
    NotFoundError,
    StateError,
    StorageError,
)
from cerne.host.process import ProcessIdentity
from cerne.manager.reserve import Reserve
from cerne.units import format_size

_VERSION = 5
_BUSY_SECONDS = 20.0
_EVENTS_KEPT = 10_000

_SCHEMA = """
CREATE TABLE machines (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    spec TEXT NOT NULL,
    image TEXT NOT NULL,
    digest TEXT NOT NULL,
    cpus INTEGER NOT NULL,
    memory INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    engine TEXT NOT NULL DEFAULT '',
    pid INTEGER,
    start_time INTEGER,
    boot_id TEXT,
    created REAL NOT NULL,
    started REAL,
    ready REAL
) STRICT;
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL,
    machine TEXT NOT NULL,
    name TEXT NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX events_of_machine ON events (machine);
"""

# What brings a store of the version before to this one; a new store goes through all of them.
_UPGRADES = {
    1: _SCHEMA,
    2: """
ALTER TABLE machines ADD COLUMN parent TEXT NOT NULL DEFAULT '';
CREATE TABLE snapshots (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    layer TEXT NOT NULL,
    manifest TEXT NOT NULL,
    created REAL NOT NULL
) STRICT;
""",
    3: """
CREATE TABLE pools (
    name TEXT PRIMARY KEY,
    spec TEXT NOT NULL,
    ready INTEGER NOT NULL,
    created REAL NOT NULL
) STRICT;
CREATE TABLE pool_members (
    machine TEXT PRIMARY KEY,
    pool TEXT NOT NULL
) STRICT""",
    4: """
ALTER TABLE machines ADD COLUMN untold TEXT NOT NULL DEFAULT '';
ALTER TABLE machines ADD COLUMN doing TEXT NOT NULL DEFAULT ''""",
    5: """
ALTER TABLE machines ADD COLUMN client_pid INTEGER;
ALTER TABLE machines ADD COLUMN client_start_time INTEGER;
ALTER TABLE machines ADD COLUMN client_boot_id TEXT""",
}


class State(StrEnum):
    """Where a machine is in its life."""

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
        return self in _LIVE


_LIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.SAVING, State.STOPPING})


@dataclass(frozen=True, slots=True)
class Record:
    """One machine's row. Times are seconds since the epoch."""

    id: str
    name: str
    spec: str
    """The machine's specification, as JSON."""
    image: str
    digest: str
    """The image's digest, which holds whatever its name comes to mean later."""
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
    """What its guest must still be told (`cerne.manager.telling`), with commas between."""
    doing: str = ""
    """The command that changes whether its vCPUs run: should it be killed, its process is asked."""
    client: ProcessIdentity | None = None
    """The process that it is bound to, and without which it is removed; None where it stays."""

    @property
    def unborn(self) -> bool:
        """Whether it goes on from another's memory and has not been told yet who it is.

        Should the command that makes it be interrupted, it is removed, whether it runs or not.
        """
        return bool(self.parent) and self.state is State.STARTING and self.started is None


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """One snapshot's row."""

    id: str
    name: str
    layer: str
    """The ID of the layer that its disk is; empty where it has none."""
    manifest: str
    """What is in it, as JSON (`cerne.manager.manifest`)."""
    created: float


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One pool's row."""

    name: str
    spec: str
    """What its machines are, as JSON."""
    ready: int
    """How many of them are to be ready."""
    created: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a machine."""

    number: int
    time: float
    """Seconds since the epoch."""
    machine: str
    """The machine's ID."""
    name: str
    """The name that it had then."""
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class ImageUsers:
    """What is made of an image, by name."""

    machines: tuple[str, ...]
    snapshots: tuple[str, ...]
    pools: Mapping[str, str]
    """All pools with their specifications, as JSON: they know their image by name."""


class Store:
    """The database of machines and events, open for the life of this object."""

    def __init__(
        self, path: Path, require_image: Callable[[str], object] = lambda digest: None
    ) -> None:
        """Open the store, or make it.

        `require_image` refuses, in the transaction that adds what is made of it, an image that is
        gone.

        Raises:
            DamagedError: the file is no store, or one of a newer Cerne.
            StorageError: it cannot be written.
        """
        self._path = path
        self._require_image = require_image
        self._lock = threading.Lock()
        self._reserve = Reserve(path.with_name("store.reserve"))
        self._only_read = False
        with self._errors():
            try:
                self._open()
            except sqlite3.OperationalError:
                if not self._reserve.is_needed():
                    raise
                # To look takes no room. What a full file system has left is for what frees it.
                self._database.close()
                self._connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
                self._only_read = True

    def _open(self) -> None:
        self._connect(self._path.absolute().as_uri())
        self._prepare()

    def _connect(self, address: str) -> None:
        self._database = sqlite3.connect(
            address, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
        )
        self._database.row_factory = sqlite3.Row

    def _make_writable(self) -> None:
        """See that there is room for a transaction, and that the database is open for one."""
        self._reserve.make_room()
        if self._only_read:
            self._database.close()
            self._open()
            self._only_read = False

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def add(self, record: Record) -> None:
        """Add a machine.

        Raises:
            ConflictError: its name is in use, or its image was removed meanwhile.
        """
        with self._transaction() as database:
            self._require_image(record.digest)
            _insert(database, record)

    def find(self, name: str) -> Record | None:
        """The machine of this name, or else of this ID, or None."""
        rows = self._rows("WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC", (name,))
        return rows[0] if rows else None

    def find_id(self, machine_id: str) -> Record | None:
        """The machine of this ID, whatever it is named, or None."""
        rows = self._rows("WHERE id = ?", (machine_id,))
        return rows[0] if rows else None

    def get(self, machine_id: str) -> Record:
        """The machine of this ID.

        Raises:
            NotFoundError: it has been removed.
        """
        record = self.find_id(machine_id)
        if record is None:
            raise NotFoundError("the machine has been removed", hint="see: cerne ls")
        return record

    def machines(self) -> list[Record]:
        """All machines, the oldest first."""
        return self._rows("ORDER BY created, name", ())

    def bound(self) -> list[Record]:
        """The machines that are bound to a client."""
        return self._rows("WHERE client_pid IS NOT NULL", ())

    def reserve(self, record: Record, engine: str, memory_limit: int) -> None:
        """Move a machine to ``starting``, its memory counted against the host's.

        Raises:
            CapacityError: the running machines' memory and its own exceed `memory_limit` bytes.
        """
        with self._transaction() as database:
            _require_memory(database, record, memory_limit)
            self._write(
                database,
                record,
                {"state": State.STARTING, "reason": "", "engine": engine, "ready": None},
                "starting",
                engine,
            )

    def add_unborn(self, records: Sequence[Record], memory_limit: int) -> None:
        """Add machines that are forked or restored from another: all of them, or none.

        They are ``starting`` and their memory is counted; they have no process yet.

        Raises:
            ConflictError: a name is in use.
            CapacityError: the running machines' memory and theirs exceed `memory_limit` bytes.
        """
        with self._transaction() as database:
            for record in records:
                self._require_image(record.digest)
                _require_memory(database, record, memory_limit)
                _insert(database, record)

    def add_snapshot(self, row: SnapshotRow, machine: Record | None = None) -> SnapshotRow:
        """Add a snapshot of a machine, or one that is of no machine of this store.

        One without a name is given the machine's and a number; the row as it was added.

        Raises:
            ConflictError: its name is in use, or its image was removed meanwhile.
        """
        with self._transaction() as database:
            self._require_image(_digest_of(row))
            if machine is not None and not row.name:
                row = replace(row, name=_free_snapshot_name(database, machine.name))
            try:
                database.execute(
                    "INSERT INTO snapshots (id, name, layer, manifest, created)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (row.id, row.name, row.layer, row.manifest, row.created),
                )
            except sqlite3.IntegrityError as error:
                raise snapshot_name_in_use(row.name) from error
            if machine is not None:
                _note(database, machine.id, machine.name, "snapshot", row.name)
        return row

    @contextlib.contextmanager
    def image_users(self, digest: str) -> Iterator[ImageUsers]:
        """What is made of an image; in this block nothing is added that is."""
        with self._transaction() as database:
            machines = database.execute(
                "SELECT name FROM machines WHERE digest = ? ORDER BY name", (digest,)
            )
            # A manifest that cannot be read may be of any image.
            snapshots = database.execute(
                "SELECT name FROM snapshots WHERE CASE WHEN json_valid(manifest)"
                " THEN json_extract(manifest, '$.digest') = ? ELSE 1 END ORDER BY name",
                (digest,),
            )
            pools = database.execute("SELECT name, spec FROM pools ORDER BY name")
            yield ImageUsers(
                machines=tuple(row["name"] for row in machines),
                snapshots=tuple(row["name"] for row in snapshots),
                pools={row["name"]: row["spec"] for row in pools},
            )

    def snapshots(self) -> list[SnapshotRow]:
        """All snapshots, the oldest first."""
        return self._snapshot_rows("ORDER BY created, name", ())

    def find_snapshot(self, name: str) -> SnapshotRow | None:
        """The snapshot of this name, or else of this ID, or None."""
        rows = self._snapshot_rows("WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC", (name,))
        return rows[0] if rows else None

    def remove_snapshot(self, row: SnapshotRow) -> None:
        """Forget a snapshot."""
        with self._transaction() as database:
            database.execute("DELETE FROM snapshots WHERE id = ?", (row.id,))

    def add_pool(self, row: PoolRow) -> None:
        """Add a pool.

        Raises:
            ConflictError: its name is in use.
        """
        with self._transaction() as database:
            try:
                database.execute(
                    "INSERT INTO pools (name, spec, ready, created) VALUES (?, ?, ?, ?)",
                    (row.name, row.spec, row.ready, row.created),
                )
            except sqlite3.IntegrityError as error:
                raise ConflictError(
                    f"a pool named {row.name} is there already",
                    hint=f"take another name, or remove that one: cerne pool rm {row.name}",
                ) from error

    def pools(self) -> list[PoolRow]:
        """All pools, by their names."""
        query = "SELECT name, spec, ready, created FROM pools ORDER BY name"
        with self._errors(), self._lock:
            return [PoolRow(*row) for row in self._database.execute(query)]

    def remove_pool(self, name: str) -> None:
        """Forget a pool; the machines in it are in none then."""
        with self._transaction() as database:
            database.execute("DELETE FROM pool_members WHERE pool = ?", (name,))
            database.execute("DELETE FROM pools WHERE name = ?", (name,))

    def join_pool(self, record: Record, pool: str) -> None:
        """Put a machine into a pool."""
        with self._transaction() as database:
            values = (record.id, pool)
            database.execute("INSERT INTO pool_members (machine, pool) VALUES (?, ?)", values)

    def members(self, pool: str) -> list[Record]:
        """The machines in a pool, the oldest first."""
        return self._rows(
            "JOIN pool_members ON machine = id WHERE pool = ? ORDER BY created", (pool,)
        )

    def claim(self, pool: str) -> str | None:
        """Take the oldest machine that is ready out of a pool; its ID, or None if there is none."""
        with self._transaction() as database:
            row = database.execute(
                "DELETE FROM pool_members WHERE machine = (SELECT id FROM machines"
                " JOIN pool_members ON machine = id"
                " WHERE pool = ? AND state = ? AND ready IS NOT NULL ORDER BY created LIMIT 1)"
                " RETURNING machine",
                (pool, State.RUNNING),
            ).fetchone()
        return None if row is None else str(row[0])

    def change(
        self,
        record: Record,
        state: State,
        *,
        reason: str = "",
        kind: str | None = None,
        untold: str | None = None,
    ) -> Record:
        """Move a machine to a state, with an event of that name or of `kind`; its new record.

        In a state without a process the process is forgotten. `untold` is what its guest must be
        told from then on.
        """
        values: dict[str, str | float | None] = {"state": state, "reason": reason, "doing": ""}
        if untold is not None:
            values["untold"] = untold
        if not state.live:
            values |= {"pid": None, "start_time": None, "boot_id": None, "ready": None}
            # A guest that goes on from its memory may still have to be told what it was not.
            values |= {} if state is State.SUSPENDED else {"untold": ""}
        with self._transaction() as database:
            self._write(database, record, values, kind or state, reason)
        return self.get(record.id)

    def begin(self, record: Record, doing: str) -> Record:
        """Note the command that changes whether a machine's vCPUs run; its new record."""
        with self._transaction() as database:
            database.execute("UPDATE machines SET doing = ? WHERE id = ?", (doing, record.id))
        return self.get(record.id)

    def set_process(self, record: Record, process: ProcessIdentity, untold: str = "") -> Record:
        """Move a machine to ``running`` in this process, its guest to be told; its new record."""
        values: dict[str, str | float | None] = {
            "state": State.RUNNING,
            "untold": untold,
            "doing": "",
            "pid": process.pid,
            "start_time": process.start_time,
            "boot_id": process.boot_id,
            "started": time.time(),
        }
        with self._transaction() as database:
            self._write(database, record, values, "started", f"process {process.pid}")
        return self.get(record.id)

    def note_process(self, record: Record, process: ProcessIdentity) -> Record:
        """Note which process a machine that is unborn has; its new record."""
        values: dict[str, str | float | None] = {
            "pid": process.pid,
            "start_time": process.start_time,
            "boot_id": process.boot_id,
        }
        with self._transaction() as database:
            self._write(database, record, values, "forked", f"process {process.pid}")
        return self.get(record.id)

    def set_ready(self, record: Record) -> Record:
        """Note that a machine's guest is ready; its new record."""
        with self._transaction() as database:
            self._write(database, record, {"ready": time.time()}, "ready", "")
        return self.get(record.id)

    def set_told(self, record: Record) -> None:
        """Note that a machine's guest was told all and is ready, if nothing was added since."""
        with self._transaction() as database:
            changed = database.execute(
                "UPDATE machines SET untold = '', ready = coalesce(ready, ?)"
                " WHERE id = ? AND name = ? AND untold = ? AND pid = ?",
                (
                    time.time(),
                    record.id,
                    record.name,
                    record.untold,
                    record.process.pid if record.process else None,
                ),
            ).rowcount
            if changed and record.ready is None:
                _note(database, record.id, record.name, "ready", "")

    def tell(self, record: Record, kind: str, detail: str) -> None:
        """Add an event of a machine, which changes nothing else."""
        with self._transaction() as database:
            _note(database, record.id, record.name, kind, detail)

    def rename(self, record: Record, name: str, spec: str, untold: str = "") -> None:
        """Give a machine another name, and the specification that says so.

        Raises:
            ConflictError: the name is in use.
        """
        with self._transaction() as database:
            try:
                values = {"name": name, "spec": spec, "untold": untold}
                self._write(database, record, values, "renamed", f"to {name}")
            except sqlite3.IntegrityError as error:
                raise name_in_use(name) from error

    def change_spec(self, record: Record, spec: str, detail: str) -> None:
        """Give a machine another specification of the same name; `detail` says what changed."""
        with self._transaction() as database:
            self._write(database, record, {"spec": spec}, "changed", detail)

    def remove(self, record: Record) -> None:
        """Forget a machine; its events are kept."""
        with self._transaction() as database:
            database.execute("DELETE FROM pool_members WHERE machine = ?", (record.id,))
            database.execute("DELETE FROM machines WHERE id = ?", (record.id,))
            _note(database, record.id, record.name, "removed", "")

    def events(self, after: int = 0, machine_id: str | None = None) -> list[Event]:
        """Events with a number above `after`, of all machines or of one, the oldest first."""
        with self._errors(), self._lock:
            rows = self._database.execute(
                "SELECT number, time, machine, name, kind, detail FROM events"
                " WHERE number > ?1 AND (?2 IS NULL OR machine = ?2) ORDER BY number",
                (after, machine_id),
            ).fetchall()
        return [Event(*row) for row in rows]

    def _prepare(self) -> None:
        version = self._version()
        if version == 0:
            self._database.execute("PRAGMA journal_mode = WAL")
        if version < _VERSION:
            self._upgrade()
        self._require_known_version()

    def _require_known_version(self) -> None:
        """Refuse a store that a newer Cerne has upgraded, even after it was opened here."""
        version = self._version()
        if version > _VERSION:
            raise DamagedError(
                f"{self._path} was written by another version of Cerne (store version {version})",
                hint="use that version, or set CERNE_HOME to another directory",
            )

    def _upgrade(self) -> None:
        with self._transaction() as database:
            # Another process may have done so since the version was read.
            for version in range(self._version() + 1, _VERSION + 1):
                for statement in _UPGRADES[version].split(";\n"):
                    database.execute(statement)
            database.execute(f"PRAGMA user_version = {_VERSION}")

    def _version(self) -> int:
        return int(self._database.execute("PRAGMA user_version").fetchone()[0])

    def _rows(self, clause: str, values: tuple[str, ...]) -> list[Record]:
        with self._errors(), self._lock:
            rows = self._database.execute(f"SELECT * FROM machines {clause}", values).fetchall()
        return [_record(row) for row in rows]

    def _snapshot_rows(self, clause: str, values: tuple[str, ...]) -> list[SnapshotRow]:
        query = f"SELECT id, name, layer, manifest, created FROM snapshots {clause}"
        with self._errors(), self._lock:
            return [SnapshotRow(*row) for row in self._database.execute(query, values)]

    def _write(
        self,
        database: sqlite3.Connection,
        record: Record,
        values: Mapping[str, str | float | None],
        kind: str,
        detail: str,
    ) -> None:
        columns = ", ".join(f"{column} = ?" for column in values)
        changed = database.execute(
            f"UPDATE machines SET {columns} WHERE id = ?",
            (*values.values(), record.id),
        ).rowcount
        if not changed:
            raise NotFoundError(f"{record.name} has been removed", hint="see: cerne ls")
        _note(database, record.id, record.name, kind, detail)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._errors(), self._lock:
            self._make_writable()
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._require_known_version()
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StorageError(
                f"{self._path} cannot be used: {error}",
                hint=f"see that {self._path.parent} is writable and has space: df -h",
            ) from error
        except sqlite3.ProgrammingError as error:
            raise StateError(
                "the manager was closed", hint="use it, and its machines, within its with block"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DamagedError(
                f"{self._path} is damaged: {error}",
                hint=f"move {self._path} away; the machines' disks are beside it",
            ) from error


def _digest_of(row: SnapshotRow) -> str:
    return str(json.loads(row.manifest).get("digest", ""))


def name_in_use(name: str) -> ConflictError:
    """The error that a name is another machine's."""
    return ConflictError(
        f"a machine named {name} is there already",
        hint=f"take another name, or remove that one: cerne rm {name}",
        machine=name,
    )


def snapshot_name_in_use(name: str) -> ConflictError:
    """The error that a name is another snapshot's."""
    return ConflictError(
        f"a snapshot named {name} is there already",
        hint=f"take another name, or remove that one: cerne snapshot rm {name}",
    )


def _free_snapshot_name(database: sqlite3.Connection, machine: str) -> str:
    taken = {name for (name,) in database.execute("SELECT name FROM snapshots")}
    return next(name for number in count(1) if (name := f"{machine}-{number}") not in taken)


def _insert(database: sqlite3.Connection, record: Record) -> None:
    client = record.client
    try:
        database.execute(
            "INSERT INTO machines (id, name, spec, image, digest, cpus, memory, state, engine,"
            " created, parent, client_pid, client_start_time, client_boot_id)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.id,
                record.name,
                record.spec,
                record.image,
                record.digest,
                record.cpus,
                record.memory,
                record.state,
                record.engine,
                record.created,
                record.parent,
                *((None, None, None) if client is None else astuple(client)),
            ),
        )
    except sqlite3.IntegrityError as error:
        raise name_in_use(record.name) from error
    _note(database, record.id, record.name, "created", record.image)


def _require_memory(database: sqlite3.Connection, record: Record, limit: int) -> None:
    states = ",".join(f"'{state}'" for state in sorted(_LIVE))
    query = f"SELECT total(memory) FROM machines WHERE state IN ({states}) AND id != ?"
    used = int(database.execute(query, (record.id,)).fetchone()[0])
    if used + record.memory > limit:
        raise CapacityError(
            f"{record.name} wants {format_size(record.memory)} of memory, and"
            f" {format_size(max(0, limit - used))} of this host's"
            f" {format_size(limit)} are not promised to others",
            hint="stop a machine that is not needed, or ask for less with --memory",
            machine=record.name,
        )


def _note(database: sqlite3.Connection, machine_id: str, name: str, kind: str, detail: str) -> None:
    number = database.execute(
        "INSERT INTO events (time, machine, name, kind, detail) VALUES (?, ?, ?, ?, ?)",
        (time.time(), machine_id, name, kind, detail),
    ).lastrowid
    database.execute("DELETE FROM events WHERE number <= ?", ((number or 0) - _EVENTS_KEPT,))


def _identity(row: sqlite3.Row, prefix: str = "") -> ProcessIdentity | None:
    if row[f"{prefix}pid"] is None:
        return None
    return ProcessIdentity(*(row[prefix + column] for column in ("pid", "start_time", "boot_id")))


def _record(row: sqlite3.Row) -> Record:
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
        process=_identity(row),
        created=row["created"],
        started=row["started"],
        ready=row["ready"],
        parent=row["parent"],
        untold=row["untold"],
        doing=row["doing"],
        client=_identity(row, "client_"),
    )
