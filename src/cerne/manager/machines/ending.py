"""The end of a run, and of a machine."""

from __future__ import annotations

import contextlib
import logging
import signal

from cerne.errors import DamagedError, EngineError
from cerne.host.members import Members
from cerne.manager.machines.cards import disconnect
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.disks import own_disks
from cerne.manager.recovery import discard, discard_runtime
from cerne.manager.store import Record, State

_log = logging.getLogger(__name__)

KILL_TIMEOUT = 10.0
"""Seconds in which a process that was killed is gone."""


def clear_runtime(context: MachineContext) -> None:
    """Make its runtime directory, empty."""
    discard_runtime(context.home, context.id)
    context.runtime.mkdir(mode=0o700)


def ended(context: MachineContext, record: Record, state: State, reason: str) -> Record:
    """Record that it has no process any more; only a suspended machine keeps its memory."""
    if state is State.FAILED:
        reason = _limit_reached(context) or reason
    _log.debug("%s is %s: %s", record.name, state, reason)
    discard_runtime(context.home, context.id)
    discard_saved(context, whole=state is not State.SUSPENDED)
    disconnect(context)
    return context.store.change(record, state, reason=reason)


def _limit_reached(context: MachineContext) -> str:
    """Why the kernel has killed a process of it, if it has."""
    from cerne.host.cell import Cell

    with contextlib.suppress(DamagedError):
        if Cell(context.home.machine_group(context.id)).killed_for_memory():
            return (
                "it reached its memory limit; to raise it: cerne set"
                f" {context.last.name} --memory-limit SIZE"
            )
    return ""


def kill(
    context: MachineContext, record: Record, reason: str, state: State = State.STOPPED
) -> Record:
    """End its process at once.

    Raises:
        EngineError: the process does not end.
    """
    if record.process is not None:
        record.process.send(signal.SIGKILL)
        if not record.process.wait(KILL_TIMEOUT):
            raise EngineError(
                f"process {record.process.pid} of {record.name} does not end",
                hint="it hangs in the kernel: see dmesg",
                machine=record.name,
            )
    else:
        Members(context.runtime).end()
    return ended(context, record, state, reason)


def not_started(context: MachineContext, record: Record, why: str) -> None:
    Members(context.runtime).end()
    for disk in own_disks(context).values():
        context.layers.roll_back(disk)
    # A disk that is unreadable may need any of its layers.
    with contextlib.suppress(DamagedError):
        context.layers.settle(context.id)
    ended(context, record, State.SUSPENDED if context.saved.exists() else State.FAILED, why)


def forget(context: MachineContext, record: Record) -> None:
    """Remove all that there is of it."""
    disconnect(context)
    # From here on it does not exist; what is left of it is swept by the next `create`.
    context.store.remove(record)
    discard(context.directory)
    discard_runtime(context.home, context.id)
    context.lock_path.unlink(missing_ok=True)
    collect(context.manager)


def abandon(context: MachineContext) -> None:
    """End and remove it, if it is incomplete."""
    record = context.store.get(context.id)
    if record.process is not None:
        record.process.send(signal.SIGKILL)
        record.process.wait(KILL_TIMEOUT)
    Members(context.runtime).end()
    forget(context, record)


def discard_saved(context: MachineContext, *, whole: bool) -> None:
    discard(context.home.half_saved(context.id))
    if whole:
        discard(context.saved)
