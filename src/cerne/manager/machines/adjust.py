"""Changing a machine that may be running: the memory that its guest may have, its CPU weight.

Its specification says so from then on, so that its next start and its forks have it too.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CerneError, InputError
from cerne.host.cgroup import require_weights
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.operation import operation
from cerne.manager.machines.states import require_state
from cerne.manager.store import State

if TYPE_CHECKING:
    from cerne.manager.store import Record


def adjust(context: MachineContext, balloon: int | None, cpu_weight: int | None) -> None:
    """Change what is given (see `Machine.adjust`)."""
    changes = {"balloon": balloon, "cpu_weight": cpu_weight}
    given = {name: value for name, value in changes.items() if value is not None}
    if not given:
        raise InputError(
            "no value to change was given", hint="give one: cerne set NAME --balloon 256M"
        )
    with operation(context, "set") as record:
        require_state(record, *_CHANGEABLE)
        spec = context.spec.changed(**given)
        if cpu_weight is not None:
            require_weights()
        if record.state.live:
            _apply(context, record, balloon, cpu_weight)
        words = ", ".join(f"{name} {value}" for name, value in given.items())
        context.store.change_spec(record, spec.model_dump_json(), words)
        context.last = context.store.get(context.id)


_CHANGEABLE = (
    State.RUNNING,
    State.PAUSED,
    State.DEFINED,
    State.STOPPED,
    State.FAILED,
    State.SUSPENDED,
)


def _apply(
    context: MachineContext, record: Record, balloon: int | None, cpu_weight: int | None
) -> None:
    """Change a process that runs: all of it, or nothing."""
    former = context.spec.balloon
    instance = context.instance(record)
    if balloon is not None:
        instance.set_memory(balloon)
    if cpu_weight is None or record.process is None:
        return
    try:
        instance.set_cpu_weight(cpu_weight)
        faults.step("weighed")
    except BaseException:
        if balloon is not None:
            with contextlib.suppress(CerneError):
                instance.set_memory(record.memory if former is None else former)
        raise
