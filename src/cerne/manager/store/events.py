"""Events: what happened, the newest for each subject."""

from __future__ import annotations

import json
import sqlite3
import time
from contextvars import ContextVar

from cerne.manager.store.database import Repository
from cerne.manager.store.rows import Detail, Event, Record, Subject, moment_of

_DAYS_KEPT = 30
_KEPT_OF_SUBJECT = 1_000
_KEPT = 100_000
"""So many are kept of all subjects, however new: a store must not fill its disk."""


working_on: ContextVar[str | None] = ContextVar("working_on", default=None)
"""The ID of the operation that this thread or task works on; its events have it."""


class Events(Repository):
    """The events of one home."""

    def tell(self, record: Record, kind: str, reason: str) -> None:
        """Add an event of a machine, which changes nothing else."""
        with self._database.transaction() as connection:
            note(connection, record, kind, {"reason": reason})

    def events(self, after: int = 0, subject: str | None = None) -> list[Event]:
        """Events with a number above `after`, of all or of one subject, the oldest first."""
        rows = self._database.rows(
            "SELECT number, time, subject_kind, subject, name, kind, detail, operation FROM events"
            " WHERE number > ?1 AND (?2 IS NULL OR subject = ?2) ORDER BY number",
            (after, subject),
        )
        return [_event(row) for row in rows]


def note(
    connection: sqlite3.Connection, machine: Record, kind: str, detail: Detail | None = None
) -> None:
    """Add an event of a machine to the transaction that is open; the oldest go."""
    note_of(connection, Subject.MACHINE, machine.id, machine.name, kind, detail)


def note_of(
    connection: sqlite3.Connection,
    subject: Subject,
    id_: str,
    name: str,
    kind: str,
    detail: Detail | None = None,
) -> None:
    """Add an event of any subject to the transaction that is open; the oldest go."""
    now = time.time()
    number = connection.execute(
        "INSERT INTO events (time, subject_kind, subject, name, kind, detail, operation)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *(now, subject, id_, name),
            *(kind, json.dumps(detail or {}), working_on.get()),
        ),
    ).lastrowid
    _forget_old(connection, number or 0, now - _DAYS_KEPT * 86400, subject, id_)


def _forget_old(
    connection: sqlite3.Connection, newest: int, time_: float, kind: Subject, subject: str
) -> None:
    connection.execute("DELETE FROM events WHERE number <= ?", (newest - _KEPT,))
    connection.execute("DELETE FROM events WHERE time < ?", (time_,))
    connection.execute(
        "DELETE FROM events WHERE subject_kind = ?1 AND subject = ?2 AND number <="
        " (SELECT number FROM events WHERE subject_kind = ?1 AND subject = ?2"
        " ORDER BY number DESC LIMIT 1 OFFSET ?3)",
        (kind, subject, _KEPT_OF_SUBJECT),
    )


def _event(row: sqlite3.Row) -> Event:
    try:
        detail = json.loads(row["detail"])
    except ValueError:
        detail = None
    # A row that is damaged holds up no other.
    read: Detail = detail if isinstance(detail, dict) else {"text": row["detail"]}
    return Event(
        number=row["number"],
        time=moment_of(row["time"]),
        subject_kind=row["subject_kind"],
        subject=row["subject"],
        name=row["name"],
        kind=row["kind"],
        detail=read,
        operation=row["operation"],
    )
