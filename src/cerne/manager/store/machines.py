"""Machines: what was asked for, and what was last seen of them.

Whether a machine runs is told by its process alone (`ProcessIdentity`), never by a row.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple

from cerne.errors import ConflictError, NotFoundError
from cerne.host.process import ProcessIdentity
from cerne.manager.store.database import Value
from cerne.manager.store.events import note
from cerne.manager.store.images import refer_to_image
from cerne.manager.store.layers import refer_to_layers
from cerne.manager.store.networks import require_name_on_networks, settle_cards
from cerne.manager.store.promises import Claim, Promises, end_promises, promise
from cerne.manager.store.rows import LIVE, Detail, Record, State, record_of


class Machines(Promises):
    """The machines of one home."""

    def add(self, record: Record, layers: Iterable[str] = (), claim: Claim | None = None) -> None:
        """Add a machine, whose disks are on these layers, with what it claims.

        Raises:
            ConflictError: its name is in use, or its image was removed meanwhile.
            CapacityError: the host has no room for its disks.
            NotFoundError, ConflictError, InputError: as `settle_cards`.
        """
        with self._database.transaction() as connection:
            self._insert(connection, record)
            refer_to_layers(connection, record.id, layers)
            if claim is not None:
                promise(connection, record, claim)

    def find(self, name: str) -> Record | None:
        """The machine of this name, or else of this ID, or None."""
        rows = self._rows("WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC", (name,))
        return rows[0] if rows else None

    def find_id(self, machine_id: str) -> Record | None:
        """The machine of this ID, also after a rename, or None."""
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

    def live(self) -> list[Record]:
        """The machines that have a process, or are about to, as far as is known."""
        states = ",".join(f"'{state}'" for state in sorted(LIVE))
        return self._rows(f"WHERE state IN ({states})", ())

    def incomplete(self) -> list[Record]:
        """The machines whose making has not ended, or was interrupted."""
        return self._rows("WHERE incomplete", ())

    def names(self) -> frozenset[str]:
        """The names of all machines."""
        return frozenset(row["name"] for row in self._database.rows("SELECT name FROM machines"))

    def ids(self) -> frozenset[str]:
        """The IDs of all machines and all snapshots."""
        rows = self._database.rows("SELECT id FROM machines UNION ALL SELECT id FROM snapshots")
        return frozenset(row["id"] for row in rows)

    def bound(self) -> list[Record]:
        """The machines that are bound to a client."""
        return self._rows("WHERE client_pid IS NOT NULL", ())

    def reserve(
        self, record: Record, engine: str, claim: Claim, layers: Iterable[str] = ()
    ) -> None:
        """Move a machine to ``starting``, with what it claims.

        Its disks are about to lie on `layers`, beside those that they lie on.

        Raises:
            CapacityError: the host has not so much.
        """
        with (
            self._promising([(record, claim)]) as elsewhere,
            self._database.transaction() as connection,
        ):
            promise(connection, record, claim, elsewhere)
            _write(
                connection,
                record,
                {"state": State.STARTING, "reason": "", "engine": engine, "ready": None},
                "starting",
                {"engine": engine},
            )
            refer_to_layers(connection, record.id, layers)

    def add_incomplete(self, claims: Iterable[tuple[Record, Claim]]) -> None:
        """Add machines that are forked or restored from another: all of them, or none.

        They are ``starting`` with what they claim; they have no process yet.

        Raises:
            ConflictError: a name is in use.
            CapacityError: the host has not so much.
        """
        claims = list(claims)
        with self._promising(claims) as elsewhere, self._database.transaction() as connection:
            for record, claim in claims:
                self._insert(connection, record)
                promise(connection, record, claim, elsewhere)

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
        values: dict[str, Value] = {"state": state, "reason": reason, "doing": ""}
        if untold is not None:
            values["untold"] = untold
        if not state.live:
            values |= {"pid": None, "start_time": None, "boot_id": None, "ready": None}
            values |= {"instance": ""}
            # A guest that goes on from its memory may still have to be told what it was not.
            values |= {} if state is State.SUSPENDED else {"untold": ""}
        with self._database.transaction() as connection:
            _write(connection, record, values, kind or state, {"reason": reason} if reason else {})
            if not state.live:
                end_promises(connection, record)
        if not state.live:
            self._show(record)
        return self.get(record.id)

    def begin(self, record: Record, doing: str) -> Record:
        """Note the command that changes whether a machine's vCPUs run; its new record."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE machines SET doing = ?, generation = generation + 1 WHERE id = ?",
                (doing, record.id),
            )
        return self.get(record.id)

    def set_process(
        self,
        record: Record,
        process: ProcessIdentity,
        untold: str = "",
        *,
        instance: str | None = None,
    ) -> Record:
        """Move a machine to ``running`` in this process, its guest to be told; its new record.

        `instance` is `Record.instance`, which stays as it is where none is given.
        """
        values: dict[str, Value] = {
            "state": State.RUNNING,
            "untold": untold,
            "doing": "",
            "pid": process.pid,
            "start_time": process.start_time,
            "boot_id": process.boot_id,
            "started": time.time(),
            "incomplete": False,
        }
        if instance is not None:
            values["instance"] = instance
        with self._database.transaction() as connection:
            _write(connection, record, values, "started", {"pid": process.pid})
        self._show(record)
        return self.get(record.id)

    def note_process(
        self, record: Record, process: ProcessIdentity, *, instance: str = ""
    ) -> Record:
        """Note which process an incomplete machine has; its new record."""
        values: dict[str, Value] = {
            "pid": process.pid,
            "start_time": process.start_time,
            "boot_id": process.boot_id,
            "instance": instance,
        }
        with self._database.transaction() as connection:
            _write(connection, record, values, "forked", {"pid": process.pid})
        self._show(record)
        return self.get(record.id)

    def note_instance(self, record: Record, instance: str) -> Record:
        """Note `Record.instance` of a machine that runs without one; its new record."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE machines SET instance = ?, generation = generation + 1"
                " WHERE id = ? AND pid = ?",
                (instance, record.id, record.process.pid if record.process else None),
            )
        return self.get(record.id)

    def set_ready(self, record: Record) -> Record:
        """Note that a machine's guest is ready; its new record."""
        with self._database.transaction() as connection:
            _write(connection, record, {"ready": time.time()}, "ready")
        return self.get(record.id)

    def set_told(self, record: Record) -> None:
        """Note that a machine's guest was told all and is ready, if nothing was added since."""
        with self._database.transaction() as connection:
            changed = connection.execute(
                "UPDATE machines SET untold = '', ready = coalesce(ready, ?),"
                " generation = generation + 1"
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
                note(connection, record, "ready")

    def rename(self, record: Record, name: str, spec: str, untold: str = "") -> None:
        """Give a machine another name, and the specification that says so.

        Raises:
            ConflictError: the name is in use, or means another thing on a network of the machine.
        """
        with self._database.transaction() as connection:
            try:
                values = {"name": name, "spec": spec, "untold": untold}
                _write(connection, record, values, "renamed", {"to": name})
            except sqlite3.IntegrityError as error:
                raise name_in_use(name) from error
            require_name_on_networks(connection, record.id, name)

    def change_spec(
        self,
        record: Record,
        spec: str,
        detail: str,
        claim: Claim | None = None,
        shape: tuple[int, int] | None = None,
    ) -> None:
        """Give a machine another specification of the same name; `detail` says what changed.

        `shape` is the number of CPUs and the bytes of memory, if they changed.

        Raises:
            CapacityError: the host has not what it claims with it.
            NotFoundError, ConflictError, InputError: as `settle_cards`.
        """
        claims = [] if claim is None else [(record, claim)]
        with self._promising(claims) as elsewhere, self._database.transaction() as connection:
            if claim is not None:
                promise(connection, record, claim, elsewhere)
            cpus, memory = shape or (record.cpus, record.memory)
            values: dict[str, Value] = {"spec": spec, "cpus": cpus, "memory": memory, "doing": ""}
            _write(connection, record, values, "changed", {"change": detail})
            settle_cards(connection, record.id, record.name, spec)

    def remove(self, record: Record) -> None:
        """Forget a machine; its events are kept."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM machines WHERE id = ?", (record.id,))
            note(connection, record, "removed")
        self._show(record)

    def _insert(self, connection: sqlite3.Connection, record: Record) -> None:
        self._require_image(record.digest)
        refer_to_image(connection, record.digest)
        client = (None, None, None) if record.client is None else astuple(record.client)
        try:
            connection.execute(
                "INSERT INTO machines (id, name, spec, image, digest, cpus, memory, state,"
                " incomplete, engine, created, parent, client_pid, client_start_time,"
                " client_boot_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.id,
                    record.name,
                    record.spec,
                    record.image,
                    record.digest,
                    record.cpus,
                    record.memory,
                    record.state,
                    record.incomplete,
                    record.engine,
                    record.created,
                    record.parent,
                    *client,
                ),
            )
        except sqlite3.IntegrityError as error:
            raise name_in_use(record.name) from error
        settle_cards(connection, record.id, record.name, record.spec)
        note(connection, record, "created", {"image": record.image})

    def _rows(self, clause: str, values: tuple[str, ...]) -> list[Record]:
        rows = self._database.rows(f"SELECT * FROM machines {clause}", values)
        return [record_of(row) for row in rows]


def name_in_use(name: str) -> ConflictError:
    """The error that a name is another machine's."""
    return ConflictError(
        f"there is a machine named {name} already",
        hint=f"take another name, or remove that one: cerne rm {name}",
        machine=name,
    )


def _write(
    connection: sqlite3.Connection,
    record: Record,
    values: Mapping[str, Value],
    kind: str,
    detail: Detail | None = None,
) -> None:
    columns = ", ".join(f"{column} = ?" for column in values)
    changed = connection.execute(
        f"UPDATE machines SET {columns}, generation = generation + 1 WHERE id = ?",
        (*values.values(), record.id),
    ).rowcount
    if not changed:
        raise NotFoundError(f"{record.name} has been removed", hint="see: cerne ls")
    note(connection, record, kind, detail)
