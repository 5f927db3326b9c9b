"""Holding a machine's vCPUs, and letting them run on."""

from __future__ import annotations

from cerne import faults
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.operation import operation
from cerne.manager.machines.recovery import observed
from cerne.manager.machines.states import require_state
from cerne.manager.machines.telling import tell
from cerne.manager.store import State


def pause(context: MachineContext) -> None:
    """Hold its vCPUs where they are (see `Machine.pause`)."""
    with operation(context, "pause") as record:
        require_state(record, State.RUNNING, State.PAUSED)
        if record.state is State.RUNNING:
            record = context.store.begin(record, "pause")
            faults.step("pausing")
            context.instance(record).pause()
            faults.step("paused")
            context.last = context.store.change(record, State.PAUSED)


def resume(context: MachineContext) -> None:
    """Let its vCPUs run on (see `Machine.resume`)."""
    with operation(context, "resume") as record:
        require_state(record, State.RUNNING, State.PAUSED)
        if record.state is State.PAUSED:
            record = context.store.begin(record, "resume")
            faults.step("resuming")
            context.instance(record).resume()
            faults.step("resumed")
            context.last = observed(context, record, "resumed")
    tell(context)
