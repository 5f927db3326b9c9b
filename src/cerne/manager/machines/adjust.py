"""Changing a machine that may be running: the memory that its guest may use, its resources.

Its specification says so from then on, so that its next start and its forks have it too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CerneError, InputError
from cerne.manager.capacity import check_host, claim_to_run, fitting, growing
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.operation import operation
from cerne.manager.machines.states import require_state
from cerne.manager.store import State

if TYPE_CHECKING:
    from cerne.manager.store import Record
    from cerne.manager.store.promises import Claim
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
        former, spec = context.spec, context.spec.changed(**given)
        check_host(context.manager, spec)
        words = ", ".join(f"{name} {value}" for name, value in given.items())
        if not record.state.live:
            _note(context, record, spec, words)
            return
        # It keeps both what it had and what it is to have until its process has the latter.
        engine = context.engine()
        before, after = (claim_to_run(context.home, each, engine) for each in (former, spec))
        fitting(context.manager, lambda: context.store.promise(record, growing(before, after)))
        faults.step("promised")
        try:
            _apply(context, record, spec, given)
            _note(context, record, spec, words, after)
        except BaseException:
            # What is promised too much here is found by the next command that needs it.
            with contextlib.suppress(CerneError):
                context.store.promise(record, before)
            raise


def _note(
    context: MachineContext,
    record: Record,
    spec: MachineSpec,
    words: str,
    claim: Claim | None = None,
) -> None:
    context.store.change_spec(record, spec.model_dump_json(), words, claim)
    context.last = context.store.get(context.id)


_BALLOON = "balloon"
_CHANGEABLE = (
    State.RUNNING,
    State.PAUSED,
    State.DEFINED,
    State.STOPPED,
    State.FAILED,
    State.SUSPENDED,
)


def _apply(
    context: MachineContext, record: Record, spec: MachineSpec, given: Mapping[str, object]
) -> None:
    """Change a process that runs: all of it, or nothing."""
    former = context.spec
    instance = context.instance(record)
    # A value that it has is given again: a command that gave it another may have been killed.
    balloon = spec.balloon if _BALLOON in given else None
    if balloon is not None:
        instance.set_memory(balloon)
    if given.keys() == {_BALLOON}:
        return
    try:
        instance.set_resources(spec.resources)
        faults.step("resources given")
    except BaseException:
        # Some of them may have been given.
        with contextlib.suppress(CerneError):
            instance.set_resources(former.resources)
        if balloon is not None:
            with contextlib.suppress(CerneError):
                instance.set_memory(record.memory if former.balloon is None else former.balloon)
        raise
