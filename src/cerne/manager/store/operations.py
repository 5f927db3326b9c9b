"""Long operations: how far each is, how it ended, and whether somebody cancelled it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping

from cerne.errors import NotFoundError, StateError
from cerne.manager.store.database import Repository
from cerne.manager.store.rows import OperationRow, OperationState, amount_of, moment_of, process_of

_DAYS_KEPT = 30
_KEPT = 1_000
"""So many are kept, however new: a store must not fill its disk."""


class Operations(Repository):
    """The operations of one home. No other change waits for theirs to reach the disk."""

    def begin_operation(self, row: OperationRow) -> None:
        """Add an operation that begins; the oldest of those that have ended go."""
        assert row.process is not None
        values = (row.id, row.kind, row.subject_kind, row.subject, row.state, row.created)
        process = (row.process.pid, row.process.start_time, row.process.boot_id)
        with self._database.transaction(durable=False) as connection:
            newest = connection.execute(
                "INSERT INTO operations (id, kind, subject_kind, subject, state, created,"
                " pid, start_time, boot_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, *process),
            ).lastrowid
            connection.execute(
                "DELETE FROM operations WHERE ended IS NOT NULL AND (rowid <= ? OR ended < ?)",
                ((newest or 0) - _KEPT, row.created - _DAYS_KEPT * 86400),
            )

    def note_progress(self, id_: str, stage: str, done: int, total: int | None) -> None:
        """Write how far an operation is."""
        with self._database.transaction(durable=False) as connection:
            connection.execute(
                "UPDATE operations SET stage = ?, done = ?, total = ? WHERE id = ?",
                (stage, done, total, id_),
            )

    def end_operation(
        self,
        id_: str,
        state: OperationState,
        result: Mapping[str, str],
        error: Mapping[str, str] | None = None,
    ) -> None:
        """Write how an operation ended; nothing happens where it has ended already."""
        said = None if error is None else json.dumps(dict(error))
        with self._database.transaction(durable=False) as connection:
            connection.execute(
                "UPDATE operations SET state = ?, result = ?, error = ?, ended = ?"
                " WHERE id = ? AND ended IS NULL",
                (state, json.dumps(dict(result)), said, time.time(), id_),
            )

    def operations(self) -> list[OperationRow]:
        """All operations that are kept, the oldest first."""
        return [_operation(row) for row in self._database.rows(f"{_ALL} ORDER BY rowid")]

    def running_operations(self) -> list[OperationRow]:
        """The operations that have not ended, or whose process was killed."""
        rows = self._database.rows(f"{_ALL} WHERE ended IS NULL ORDER BY rowid")
        return [_operation(row) for row in rows]

    def operation(self, id_: str) -> OperationRow:
        """The operation with this ID.

        Raises:
            NotFoundError: there is none, or it is not kept any more.
        """
        rows = self._database.rows(f"{_ALL} WHERE id = ?", (id_,))
        if not rows:
            raise NotFoundError(
                f"there is no operation with the ID {id_}", hint="see: cerne operation ls"
            )
        return _operation(rows[0])

    def cancels(self, id_: str) -> bool:
        """Whether somebody cancelled an operation."""
        rows = self._database.rows("SELECT cancel FROM operations WHERE id = ?", (id_,))
        return bool(rows and rows[0]["cancel"])

    def cancel_operation(self, id_: str) -> None:
        """Ask the process of an operation to cancel it.

        Raises:
            NotFoundError: there is none with this ID.
            StateError: it has ended.
        """
        with self._database.transaction(durable=False) as connection:
            changed = connection.execute(
                "UPDATE operations SET cancel = 1 WHERE id = ? AND ended IS NULL", (id_,)
            ).rowcount
        if not changed:
            state = self.operation(id_).state
            raise StateError(
                f"the operation {id_} has ended already: {state}",
                hint=f"see: cerne operation inspect {id_}",
            )


_FAILED = OperationState.FAILED

_ALL = (
    "SELECT id, kind, subject_kind, subject, state, stage, done, total, result, error, cancel,"
    " pid, start_time, boot_id, created, ended FROM operations"
)


def _operation(row: sqlite3.Row) -> OperationRow:
    return OperationRow(
        id=row["id"],
        kind=row["kind"],
        subject_kind=row["subject_kind"],
        subject=row["subject"],
        # A row that is damaged holds up no other.
        state=OperationState(row["state"]) if row["state"] in iter(OperationState) else _FAILED,
        process=process_of(row),
        created=moment_of(row["created"]),
        stage=row["stage"],
        done=amount_of(row["done"]),
        total=None if row["total"] is None else amount_of(row["total"]),
        result=_said(row["result"]) or {},
        error=_said(row["error"]),
        cancel=bool(row["cancel"]),
        ended=None if row["ended"] is None else moment_of(row["ended"]),
    )


def _said(text: str | None) -> Mapping[str, str] | None:
    if text is None:
        return None
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"text": text}
