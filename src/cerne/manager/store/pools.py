"""Pools, and which machines are in them."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple

from cerne.errors import ConflictError, NotFoundError
from cerne.manager.store.database import Repository
from cerne.manager.store.rows import PoolRow, Record, State, amount_of, moment_of, record_of


class Pools(Repository):
    """The pools of one home."""

    def add_pool(self, row: PoolRow) -> None:
        """Add a pool.

        Raises:
            ConflictError: its name is in use.
        """
        with self._database.transaction() as connection:
            try:
                connection.execute(
                    "INSERT INTO pools (name, image, spec, ready, created) VALUES (?, ?, ?, ?, ?)",
                    astuple(row),
                )
            except sqlite3.IntegrityError as error:
                raise ConflictError(
                    f"there is a pool named {row.name} already",
                    hint=f"take another name, or remove that one: cerne pool rm {row.name}",
                ) from error

    def pools(self) -> list[PoolRow]:
        """All pools, by their names."""
        query = "SELECT name, image, spec, ready, created FROM pools ORDER BY name"
        return [
            PoolRow(name, image, spec, amount_of(ready), moment_of(created))
            for name, image, spec, ready, created in self._database.rows(query)
        ]

    def remove_pool(self, name: str) -> None:
        """Forget a pool; the machines in it are in none then."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM pools WHERE name = ?", (name,))

    def join_pool(self, record: Record, pool: str) -> None:
        """Put a machine into a pool; from then on it is bound to no process.

        Raises:
            NotFoundError: one of them has been removed.
        """
        with self._database.transaction() as connection:
            values = (record.id, pool)
            try:
                connection.execute("INSERT INTO pool_members (machine, pool) VALUES (?, ?)", values)
                connection.execute(
                    "UPDATE machines SET client_pid = NULL, client_start_time = NULL,"
                    " client_boot_id = NULL WHERE id = ?",
                    (record.id,),
                )
            except sqlite3.IntegrityError as error:
                raise NotFoundError(
                    f"the pool {pool}, or its new machine {record.name}, has been removed",
                    hint="see: cerne pool ls",
                ) from error

    def members(self, pool: str) -> list[Record]:
        """The machines in a pool, the oldest first."""
        rows = self._database.rows(
            "SELECT machines.* FROM machines JOIN pool_members ON machine = id"
            " WHERE pool = ? ORDER BY created",
            (pool,),
        )
        return [record_of(row) for row in rows]

    def claim(self, pool: str) -> str | None:
        """Take the oldest machine that is ready out of a pool; its ID, or None if there is none."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "DELETE FROM pool_members WHERE machine = (SELECT id FROM machines"
                " JOIN pool_members ON machine = id"
                " WHERE pool = ? AND state = ? AND ready IS NOT NULL ORDER BY created LIMIT 1)"
                " RETURNING machine",
                (pool, State.RUNNING),
            ).fetchone()
        return None if row is None else str(row[0])
