"""Removing a machine."""

from __future__ import annotations

import contextlib
import os
import shutil

from cerne.errors import CerneError, NotFoundError, StateError
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.disks import release_disks
from cerne.manager.machines.ending import forget
from cerne.manager.machines.operation import operation
from cerne.manager.machines.stop import kill_now
from cerne.manager.machines.watch import quote_logs
from cerne.manager.store import Record, State

_FAILURES_KEPT = 20


def remove(context: MachineContext, *, force: bool, keep_log: bool = True) -> None:
    """Remove it, with its disks and logs (see `Machine.remove`).

    With `keep_log` the console log of a machine that failed stays.
    """
    if force:
        kill_now(context)
    with operation(context, "remove") as record:
        if record.state.live:
            raise StateError(
                f"{record.name} is {record.state}",
                hint=f"stop it first, or: cerne rm --force {record.name}",
                machine=record.name,
            )
        if record.state is State.FAILED and keep_log:
            _keep_failure(context, record)
        # What was taken out by a command that was killed is not its any more.
        release_disks(context)
        forget(context, record)


def undo(context: MachineContext, error: BaseException) -> None:
    """Remove it, as its making failed with this error, which is told what its logs said."""
    quote_logs(error, context.logs)
    # Another command may have removed it meanwhile.
    with contextlib.suppress(NotFoundError):
        # The user who interrupts a start looks for no failure in its log.
        remove(context, force=True, keep_log=isinstance(error, Exception))
    if isinstance(error, CerneError):
        error.advise(f"{context.last.name} was removed")


def _keep_failure(context: MachineContext, record: Record) -> None:
    """Keep the console log of a machine that failed, and of others the newest few."""
    if not context.console_log.exists():
        return
    # A full disk must not keep the machine because of its log.
    with contextlib.suppress(OSError):
        shutil.copyfile(context.console_log, context.home.failure_log(record.name))
        logs = sorted(context.home.failures.iterdir(), key=os.path.getmtime)
        for log in logs[:-_FAILURES_KEPT]:
            log.unlink()
