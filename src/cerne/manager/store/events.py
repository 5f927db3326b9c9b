"""Events: what happened to machines, the newest of them."""

from __future__ import annotations

import sqlite3
import time

from cerne.manager.store.database import Repository
from cerne.manager.store.rows import Event, Record

_EVENTS_KEPT = 10_000


class Events(Repository):
    """The events of one home."""

    def tell(self, record: Record, kind: str, detail: str) -> None:
        """Add an event of a machine, which changes nothing else."""
        with self._database.transaction() as connection:
            note(connection, record.id, record.name, kind, detail)

    def events(self, after: int = 0, machine_id: str | None = None) -> list[Event]:
        """Events with a number above `after`, of all machines or of one, the oldest first."""
        rows = self._database.rows(
            "SELECT number, time, machine, name, kind, detail FROM events"
            " WHERE number > ?1 AND (?2 IS NULL OR machine = ?2) ORDER BY number",
            (after, machine_id),
        )
        return [Event(*row) for row in rows]


def note(
    connection: sqlite3.Connection, machine_id: str, name: str, kind: str, detail: str
) -> None:
    """Add an event to the transaction that is open; the oldest go."""
    number = connection.execute(
        "INSERT INTO events (time, machine, name, kind, detail) VALUES (?, ?, ?, ?, ?)",
        (time.time(), machine_id, name, kind, detail),
    ).lastrowid
    connection.execute("DELETE FROM events WHERE number <= ?", ((number or 0) - _EVENTS_KEPT,))
