"""Starts a machine, from any state that allows a start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne.errors import StateError
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.launch import start_new
from cerne.manager.machines.operation import operation
from cerne.manager.machines.plan import wanted_engine
from cerne.manager.machines.readiness import await_ready
from cerne.manager.machines.recovery import current_record
from cerne.manager.machines.states import require_state
from cerne.manager.machines.suspend import wake
from cerne.manager.machines.telling import ready_timeout
from cerne.manager.store import State
from cerne.manager.warm.template import Templates

if TYPE_CHECKING:
    from cerne.images import Progress


def start(
    context: MachineContext,
    timeout: float | None,
    *,
    cold: bool,
    progress: Progress | None = None,
) -> None:
    """Start a machine and wait until its guest is ready (see `Machine.start`)."""
    if current_record(context).state is State.SUSPENDED:
        wake(context)
        return
    if context.last.state is State.RUNNING and context.last.untold:
        # A command was killed while it waited for this guest.
        await_ready(context, _limit(context, timeout), progress)
        return
    with operation(context, "start") as record:
        if record.state.live:
            raise StateError(
                f"{record.name} is {record.state} already",
                hint=f"restart it with: cerne restart {record.name}",
                machine=record.name,
            )
        require_state(record, State.DEFINED, State.STOPPED, State.FAILED)
        image = context.image()
        engine = context.manager.choose_engine(wanted_engine(context.spec, image))
        # What goes on from a template may have no balloon (see `cerne.engine.qmp.balloon`).
        new = record.state is State.DEFINED and not cold and context.spec.balloon is None
        templates = Templates(context.manager)
        template = templates.find(context.spec, image, engine) if new else None
        start_new(context, engine, template)
    await_ready(context, _limit(context, timeout), progress)


def _limit(context: MachineContext, timeout: float | None) -> float:
    return ready_timeout(context.image()) if timeout is None else timeout
