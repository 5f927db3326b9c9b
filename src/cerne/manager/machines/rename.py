"""Giving a machine another name, of which its guest is told."""

from __future__ import annotations

from cerne import faults
from cerne.errors import EngineError, GuestError, StateError
from cerne.manager.machines.cards import rename_cards
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.operation import operation
from cerne.manager.machines.telling import Untold, added, tell
from cerne.manager.store import State
from cerne.spec.names import check_name


def rename(context: MachineContext, name: str) -> None:
    """Give it another name (see `Machine.rename`)."""
    check_name(name)
    with operation(context, "rename") as record:
        told = (
            record.state is State.RUNNING and record.ready and context.instance(record).record.agent
        )
        if record.state.live and not told:
            raise StateError(
                f"{record.name} is {record.state}, and its guest knows its name",
                hint=f"stop it first: cerne stop {record.name}",
                machine=record.name,
            )
        spec = context.spec.changed(name=name)
        untold = added(record.untold, Untold.IDENTITY)
        context.store.rename(
            record, name, spec.model_dump_json(), untold if told else record.untold
        )
        faults.step("renamed")
        context.last = context.store.get(context.id)
        if record.state.live:
            rename_cards(context)
    try:
        tell(context)
    except (GuestError, EngineError) as error:
        raise GuestError(
            f"the machine has the name {name} now, but setting it in the guest failed:"
            f" {error.message}",
            hint=f"the next command in its guest sets it, such as: cerne exec {name} -- hostname",
            machine=name,
        ) from error
