"""Snapshots, as rows: what is in one is its manifest."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from itertools import count

from cerne.errors import ConflictError
from cerne.manager.store.database import Repository
from cerne.manager.store.events import note
from cerne.manager.store.images import refer_to_image
from cerne.manager.store.rows import Record, SnapshotRow, moment_of


class Snapshots(Repository):
    """The snapshots of one home."""

    def add_snapshot(
        self, row: SnapshotRow, machine: Record | None = None, data_layers: Iterable[str] = ()
    ) -> SnapshotRow:
        """Add a snapshot of a machine, or one that is of no machine of this store.

        One without a name is given the machine's and a number; the row as it was added.
        `data_layers` are its disks beside the root disk.

        Raises:
            ConflictError: its name is in use, or its image was removed meanwhile.
        """
        with self._database.transaction() as connection:
            digest = _digest_of(row)
            self._require_image(digest)
            refer_to_image(connection, digest)
            layers = [layer for layer in (row.layer, *data_layers) if layer]
            # One that was imported lies on no other.
            connection.executemany(
                "INSERT OR IGNORE INTO layers (id) VALUES (?)", [(layer,) for layer in layers]
            )
            if machine is not None and not row.name:
                row = replace(row, name=_free_snapshot_name(connection, machine.name))
            try:
                connection.execute(
                    "INSERT INTO snapshots (id, name, digest, layer, manifest, created)"
                    " VALUES (?, ?, ?, nullif(?, ''), ?, ?)",
                    (row.id, row.name, digest, row.layer, row.manifest, row.created),
                )
            except sqlite3.IntegrityError as error:
                raise snapshot_name_in_use(row.name) from error
            connection.executemany(
                "INSERT INTO snapshot_layers (snapshot, layer) VALUES (?, ?)",
                [(row.id, layer) for layer in layers],
            )
            if machine is not None:
                note(connection, machine, "snapshot", {"snapshot": row.name})
        return row

    def snapshots(self) -> list[SnapshotRow]:
        """All snapshots, the oldest first."""
        return self._snapshot_rows("ORDER BY created, name", ())

    def find_snapshot(self, name: str) -> SnapshotRow | None:
        """The snapshot of this name, or else of this ID, or None."""
        rows = self._snapshot_rows("WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC", (name,))
        return rows[0] if rows else None

    def remove_snapshot(self, row: SnapshotRow) -> None:
        """Forget a snapshot."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM snapshots WHERE id = ?", (row.id,))

    def _snapshot_rows(self, clause: str, values: tuple[str, ...]) -> list[SnapshotRow]:
        query = f"SELECT id, name, ifnull(layer, ''), manifest, created FROM snapshots {clause}"
        rows = self._database.rows(query, values)
        return [
            SnapshotRow(id_, name, layer, manifest, moment_of(created))
            for id_, name, layer, manifest, created in rows
        ]


def _digest_of(row: SnapshotRow) -> str:
    return str(json.loads(row.manifest).get("digest", ""))


def snapshot_name_in_use(name: str) -> ConflictError:
    """The error that a name is another snapshot's."""
    return ConflictError(
        f"there is a snapshot named {name} already",
        hint=f"take another name, or remove that one: cerne snapshot rm {name}",
    )


def _free_snapshot_name(connection: sqlite3.Connection, machine: str) -> str:
    taken = {name for (name,) in connection.execute("SELECT name FROM snapshots")}
    return next(name for number in count(1) if (name := f"{machine}-{number}") not in taken)
