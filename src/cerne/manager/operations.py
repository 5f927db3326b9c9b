"""Long operations as rows of the store: their progress, how they ended, and their cancellation.

The process that works on an operation writes its progress; any other can read it, and can ask for
its end. An operation whose process was killed is ended, as failed, by the next command.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from cerne.errors import CerneError, OperationCancelledError
from cerne.manager.binding import this_process
from cerne.manager.store import OperationRow, OperationState, Store, Subject, working_on

if TYPE_CHECKING:
    from cerne.images import Progress

_log = logging.getLogger(__name__)

_INTERVAL = 0.25
"""Seconds between two looks at the store, unless another step begins."""


class Kind(StrEnum):
    """What an operation does."""

    IMAGE_BUILD = "image build"
    IMAGE_IMPORT = "image import"
    IMAGE_CREATE = "image create"
    IMAGE_WARM = "image warm"
    SNAPSHOT_CREATE = "snapshot create"
    SNAPSHOT_RESTORE = "snapshot restore"
    SNAPSHOT_EXPORT = "snapshot export"
    SNAPSHOT_IMPORT = "snapshot import"
    RUN = "run"
    POOL_FILL = "pool fill"


@dataclass
class Operation:
    """An operation that this process works on. It is a `Progress`: call it with how far it is."""

    id: str
    store: Store
    progress: Progress | None
    """Told the same as the store, and each time."""
    result: dict[str, str] = field(default_factory=dict)
    """What it made, such as ``{"machine": "web"}``."""
    _written: tuple[str, int, int | None] = ("", 0, None)
    _looked: float = 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Tell how far it is.

        Raises:
            OperationCancelledError: another command has cancelled it.
        """
        if what != self._written[0] or time.monotonic() - self._looked >= _INTERVAL:
            self._look(what, done, total)
        if self.progress is not None:
            self.progress(what, done, total)

    def _look(self, *present: *tuple[str, int, int | None]) -> None:
        if self.store.cancels(self.id):
            raise OperationCancelledError(
                f"the operation {self.id} was cancelled", hint="do it again if you want it done"
            )
        if present != self._written:
            self.store.note_progress(self.id, *present)
        self._written, self._looked = present, time.monotonic()


@contextlib.contextmanager
def recorded(
    store: Store, kind: Kind, subject_kind: Subject, subject: str, progress: Progress | None = None
) -> Iterator[Operation]:
    """Keep a row of the operation in this block: `subject` is the name of what it is about.

    Raises:
        StorageError: writing the row failed; the operation has not begun.
    """
    end_abandoned(store)
    operation = Operation(uuid.uuid4().hex[:12], store, progress)
    store.begin_operation(
        OperationRow(
            id=operation.id,
            kind=kind,
            subject_kind=subject_kind,
            subject=subject,
            state=OperationState.RUNNING,
            process=this_process(),
            created=time.time(),
        )
    )
    outer = working_on.set(operation.id)
    try:
        yield operation
    except BaseException as error:
        _end(operation, _state_after(error), _described(error))
        raise
    finally:
        working_on.reset(outer)
    _end(operation, OperationState.SUCCEEDED)


def end_abandoned(store: Store) -> None:
    """End, as failed, the operations whose process has ended without doing so."""
    for row in store.running_operations():
        if row.process is None or not row.process.alive():
            killed = {"code": "killed", "message": "its process was killed"}
            store.end_operation(row.id, OperationState.FAILED, {}, killed)


def _end(operation: Operation, state: OperationState, error: dict[str, str] | None = None) -> None:
    # The result stands, and a failure is raised, even if writing the store fails.
    try:
        operation.store.end_operation(operation.id, state, operation.result, error)
    except CerneError as failure:
        _log.warning("the end of the operation %s is not kept: %s", operation.id, failure.message)


def _state_after(error: BaseException) -> OperationState:
    ended_by_somebody = isinstance(error, OperationCancelledError | KeyboardInterrupt | SystemExit)
    return OperationState.CANCELLED if ended_by_somebody else OperationState.FAILED


def _described(error: BaseException) -> dict[str, str]:
    if isinstance(error, CerneError):
        return {"code": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return {"code": "interrupted", "message": "its command was interrupted"}
    return {"code": "error", "message": f"{type(error).__name__}: {error}"}
