"""Which layers lie under which disks of machines, snapshots and other layers.

A reference is added before a file is made that lies on the layer, and removed after the file: a
command that is killed midway leaves a reference too many, never one too few.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping

from cerne.manager.store.database import Repository
from cerne.manager.store.found import FoundLayers

_NEEDLESS = """
    WITH RECURSIVE needed (id) AS (
        SELECT layer FROM machine_layers
        UNION SELECT layer FROM snapshot_layers
        UNION SELECT value FROM json_each(:others)
        UNION SELECT parent FROM layers JOIN needed USING (id) WHERE parent IS NOT NULL
    )
    SELECT id FROM layers WHERE id NOT IN needed"""


class LayerReferences(Repository):
    """The layers of one home, and what refers to them."""

    def add_layers(self, parents: Mapping[str, str | None], machine_id: str | None = None) -> None:
        """Add layers, each with the one under it, that a machine's disks are about to lie on."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO layers (id, parent) VALUES (?, ?)", list(parents.items())
            )
            if machine_id is not None:
                refer_to_layers(connection, machine_id, parents)

    def refer_to_layers(self, machine_ids: Iterable[str], layers: Iterable[str]) -> None:
        """Note that machines' disks are about to lie on layers."""
        ids = list(layers)
        with self._database.transaction() as connection:
            for machine_id in machine_ids:
                refer_to_layers(connection, machine_id, ids)

    def layers_of(self, machine_id: str) -> frozenset[str]:
        """The layers that a machine's disks may be on."""
        rows = self._database.rows(
            "SELECT layer FROM machine_layers WHERE machine = ?", (machine_id,)
        )
        return frozenset(row["layer"] for row in rows)

    def drop_layers_of(self, machine_id: str, layers: Iterable[str]) -> None:
        """Note that a machine's disks lie on these layers no more."""
        with self._database.transaction() as connection:
            connection.executemany(
                "DELETE FROM machine_layers WHERE machine = ? AND layer = ?",
                [(machine_id, layer) for layer in layers],
            )

    def machines_on(self, layers: Iterable[str]) -> list[str]:
        """The machines whose disks may lie right on one of these layers."""
        rows = self._database.rows(
            "SELECT DISTINCT machine FROM machine_layers"
            " WHERE layer IN (SELECT value FROM json_each(?))",
            (_json(layers),),
        )
        return [row["machine"] for row in rows]

    def known_layers(self) -> frozenset[str]:
        """All layers that have a row."""
        return frozenset(row["id"] for row in self._database.rows("SELECT id FROM layers"))

    def adopt_layers(self, found: FoundLayers) -> None:
        """Give rows to layers that are needed and have none."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO layers (id) VALUES (?)", [(id_,) for id_ in found.parents]
            )
            connection.executemany(
                "UPDATE layers SET parent = ?2 WHERE id = ?1", list(found.parents.items())
            )
            connection.executemany(
                "INSERT OR IGNORE INTO machine_layers SELECT id, ?2 FROM machines WHERE id = ?1",
                [(machine, layer) for machine, lower in found.machines.items() for layer in lower],
            )

    def has_needless_layers(self, others: Iterable[str]) -> bool:
        """Whether there are layers that no machine, no snapshot and none of `others` needs."""
        return bool(self._database.rows(f"{_NEEDLESS} LIMIT 1", {"others": _json(others)}))

    @contextlib.contextmanager
    def without_needless_layers(self, others: Iterable[str]) -> Iterator[frozenset[str]]:
        """Forget the layers that nothing needs; in the block, those that are left.

        The files of all others are to be removed in the block: nothing can come to need them.
        """
        with self._database.transaction() as connection:
            connection.execute(
                f"DELETE FROM layers WHERE id IN ({_NEEDLESS})", {"others": _json(others)}
            )
            yield frozenset(row["id"] for row in connection.execute("SELECT id FROM layers"))


def refer_to_layers(connection: sqlite3.Connection, machine_id: str, layers: Iterable[str]) -> None:
    """Refer to layers in the transaction that is open."""
    connection.executemany(
        "INSERT OR IGNORE INTO machine_layers (machine, layer) VALUES (?, ?)",
        [(machine_id, layer) for layer in layers],
    )


def _json(values: Iterable[str]) -> str:
    return json.dumps(list(values))
