"""Changing a machine that may be running: the memory that its guest may use, its resources.

Its specification says so from then on, so that its next start and its forks have it too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
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
    from cerne.spec.machine import MachineSpec


def adjust(context: MachineContext, asked: Mapping[str, object]) -> None:
    """Change the values of these names (see `Machine.adjust`)."""
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        raise InputError(
            "no value to change was given", hint="give one: cerne set NAME --balloon 256M"
        )
    with operation(context, "set") as record:
        require_state(record, *_CHANGEABLE)
        spec = context.spec.changed(**given)
        if spec.resources.cpu.weight is not None:
            require_weights()
        if record.state.live:
            _apply(context, record, spec)
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


def _apply(context: MachineContext, record: Record, spec: MachineSpec) -> None:
    """Change a process that runs: all of it, or nothing."""
    former = context.spec
    instance = context.instance(record)
    if spec.balloon is not None and spec.balloon != former.balloon:
        instance.set_memory(spec.balloon)
    if spec.resources == former.resources:
        return
    try:
        instance.set_resources(spec.resources)
        faults.step("resources given")
    except BaseException:
        if spec.balloon is not None and spec.balloon != former.balloon:
            with contextlib.suppress(CerneError):
                instance.set_memory(record.memory if former.balloon is None else former.balloon)
        raise
