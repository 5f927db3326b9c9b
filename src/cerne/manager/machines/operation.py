"""One operation at a time on a machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cerne.errors import NotAnsweringError
from cerne.manager.lock import held
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.recovery import needs_settling, settled
from cerne.manager.machines.states import hung
from cerne.manager.store import Record


@contextlib.contextmanager
def operation(context: MachineContext, name: str, *, settle: bool = True) -> Iterator[Record]:
    """Hold the machine's lock; its record, put right where `settle` says so."""
    with held(context.lock_path, name, context.last.name):
        record = context.store.get(context.id)
        if (settle or record.incomplete) and needs_settling(record):
            record = settled(context, record)
        context.last = record
        try:
            yield record
        except NotAnsweringError as error:
            raise hung(context.last) from error
