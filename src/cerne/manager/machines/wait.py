"""Waiting until a machine does not run."""

from __future__ import annotations

import time

from cerne.errors import GuestTimeoutError
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.recovery import current_record
from cerne.manager.store import State

_LOOKING = 0.5
"""Seconds after which one looks whether a command that starts a machine was killed."""


def wait(context: MachineContext, timeout: float | None) -> State:
    """Wait until it does not run; its state then (see `Machine.wait`)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while (record := current_record(context)).state.live:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise still_live(context.last.name, record.state, timeout)
        process = record.process
        if process is not None and process.alive():
            process.wait(left)
        else:
            _await_change(context, left)
    return record.state


def still_live(name: str, state: State, timeout: float | None) -> GuestTimeoutError:
    """The error that a machine has not ended in so many seconds."""
    return GuestTimeoutError(
        f"{name} is still {state} after {timeout:g} s",
        hint=f"stop it with: cerne stop {name}",
        machine=name,
    )


def _await_change(context: MachineContext, timeout: float | None) -> None:
    """Wait until a command gives it a process, or records its end, or was killed before that."""
    with context.store.changes() as changes:
        record = current_record(context)
        if record.state.live and (record.process is None or not record.process.alive()):
            changes.wait(_LOOKING if timeout is None else min(timeout, _LOOKING))
