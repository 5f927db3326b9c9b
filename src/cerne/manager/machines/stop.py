"""Stopping a machine: by its guest, or at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import (
    CerneError,
    ConflictError,
    DamagedError,
    GuestError,
    InputError,
    StateError,
)
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.ending import KILL_TIMEOUT, ended, kill
from cerne.manager.machines.operation import operation
from cerne.manager.machines.recovery import WAS_PAUSED, settled_if_it_answers
from cerne.manager.machines.telling import Untold
from cerne.manager.store import Record, State

if TYPE_CHECKING:
    from cerne.engine.base import Instance


STOP_TIMEOUT = 10.0
"""Seconds that a guest may take to shut down before it is killed, unless a command says
otherwise."""

KILLED = "killed: "
"""What a stopped machine's reason begins with that did not shut down by itself."""

_ASKING_ENDS = 1.0
"""Seconds in which a guest's connection ends whose process has ended."""


def stop(context: MachineContext, timeout: float) -> None:
    """Shut its guest down, or kill it (see `Machine.stop`)."""
    with operation(context, "stop", settle=False) as found:
        record = settled_if_it_answers(context, found)
        if record.state is State.SUSPENDED:
            raise StateError(
                f"{record.name} is suspended, and a stop would lose its memory",
                hint=f"wake it first: cerne wake {record.name}; or lose its memory:"
                f" cerne kill {record.name}",
                machine=record.name,
            )
        if not record.state.live or record.process is None:
            return
        _require_asked(context, record)
        was_ready = record.ready is not None or Untold.IDENTITY in record.untold
        reason = WAS_PAUSED if record.state is State.PAUSED else ""
        stopping = context.store.change(record, State.STOPPING, reason=reason)
        faults.step("stopping")
        deadline = time.monotonic() + timeout
        # In a thread: a guest that hangs must not make anybody wait longer than was said.
        asking = threading.Thread(
            target=_ask_to_shut_down, args=(context, record, was_ready), daemon=True
        )
        asking.start()
        if record.process.wait(max(0.0, deadline - time.monotonic())):
            context.last = ended(context, stopping, State.STOPPED, "shut down")
        else:
            late = f"{KILLED}it did not shut down within {timeout:g} s"
            context.last = kill(context, stopping, late)
        asking.join(_ASKING_ENDS)


def _require_asked(context: MachineContext, record: Record) -> None:
    """Refuse a machine whose guest nothing can ask to shut down, because its row is damaged.

    Raises:
        DamagedError: it is.
    """
    try:
        context.instance(record)
    except (DamagedError, InputError) as error:
        raise DamagedError(
            f"the guest of {record.name} was not asked to shut down: {error.message}",
            hint=f"shut it down inside: cerne shell {record.name}; or end it at once:"
            f" cerne kill {record.name}",
        ) from error


def kill_now(context: MachineContext) -> None:
    """End it at once, also during another operation (see `Machine.kill`)."""
    # Before the lock is asked for: a stop that waits for its guest must not hold this up.
    process = context.store.get(context.id).process
    if process is not None:
        process.send(signal.SIGKILL)
        process.wait(KILL_TIMEOUT)
    with operation(context, "kill", settle=False) as record:
        if record.state.live:
            context.last = kill(context, record, "killed")
        elif record.state is State.SUSPENDED:
            why = "killed while it was suspended"
            context.last = ended(context, record, State.STOPPED, why)


def _ask_to_shut_down(context: MachineContext, record: Record, was_ready: bool) -> None:
    """Tell the guest to shut down, by its agent or by its power button."""
    # What goes wrong here is the guest's affair: it is killed if it does not shut down.
    with contextlib.suppress(CerneError):
        instance = context.instance(record)
        if record.state is State.PAUSED:
            instance.resume()
        if was_ready and _told_agent(instance):
            return
        instance.power_button()


def _told_agent(instance: Instance) -> bool:
    try:
        instance.agent().shutdown()
    except (GuestError, ConflictError):
        return False
    return True
