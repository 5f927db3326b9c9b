"""The guarantees, limits and weights of a machine, and the memory that it has while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cerne import faults
from cerne.host.cell import CellPlan, made
from cerne.manager.machines.context import MachineContext

if TYPE_CHECKING:
    from cerne.engine.base import Instance
    from cerne.manager.store import Record

RESIZING = "set memory"
"""What a command does to a machine (`Record.doing`) while its guest plugs or unplugs memory."""


@contextlib.contextmanager
def in_cells(contexts: Sequence[MachineContext]) -> Iterator[None]:
    """Make the cells of machines, whose processes start inside of this block.

    Raises:
        HostError: a machine has limits, and the host does not let this user set them.
    """
    with contextlib.ExitStack() as cells:
        for context in contexts:
            note = context.home.machine_group(context.id)
            plan = CellPlan(context.id, note, context.spec.resources)
            cells.enter_context(made(plan))
        yield


def give_resources(context: MachineContext, instance: Instance) -> None:
    """Give its process, which was just started, the resources of its specification, if any.

    Raises:
        HostError: the host does not let this user do so.
    """
    resources = context.spec.resources
    if not resources.is_empty:
        instance.set_resources(resources)
        faults.step("resources given")


def note_memory(context: MachineContext, record: Record, instance: Instance) -> Record:
    """Note the memory that a machine has after a command that changed it was interrupted.

    Raises:
        EngineError: its process does not answer.
    """
    spec = context.spec.changed(memory=instance.memory())
    detail, shape = f"memory {spec.memory}", (spec.cpus, spec.memory)
    context.store.change_spec(record, spec.model_dump_json(), detail, shape=shape)
    context.last = context.store.get(record.id)
    return context.last
