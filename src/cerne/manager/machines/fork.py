"""Forking a machine that runs: its children go on from where it is, and it runs on.

Where the engine forks, the host's kernel shares the memory; where it cannot, the machine is saved
once and each child goes on from that. All children are made, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count as numbers
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import ConflictError, InputError
from cerne.images.files import storage_errors
from cerne.manager.machines.attach import plug_missing, require_own_disks
from cerne.manager.machines.cards import connecting
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.creation import creating, new_record, spec_of_child
from cerne.manager.machines.disks import freeze, lay
from cerne.manager.machines.operation import operation
from cerne.manager.machines.readiness import introduce
from cerne.manager.machines.resources import give_resources, in_cells
from cerne.manager.machines.saving import saving
from cerne.manager.machines.states import require_state
from cerne.manager.networks import ensure_networks
from cerne.manager.recovery import unmade_directory
from cerne.manager.store import Record, State

if TYPE_CHECKING:
    from cerne.engine.base import Engine, Instance
    from cerne.engine.plan import LaunchPlan
    from cerne.spec.ports import PublishedPort

MOST_CHILDREN = 256
"""How many machines one fork makes at most."""


def _child_names(context: MachineContext, count: int | None, names: Sequence[str]) -> list[str]:
    """What the children are called: as given, and after their parent where names are missing.

    The parent's lock is held, so that no other fork of it makes the same names up.

    Raises:
        InputError: there are more names than children, or too many or no children.
    """
    wanted = count if count is not None else max(1, len(names))
    if not max(1, len(names)) <= wanted <= MOST_CHILDREN:
        raise InputError(
            f"the number of children is {wanted}, and that of names {len(names)}",
            hint=f"ask for 1 to {MOST_CHILDREN} children, and at most as many names",
        )
    taken = context.store.names() | set(names)
    made_up = (f"{context.last.name}-{number}" for number in numbers(1))
    free = (name for name in made_up if name not in taken)
    return [*names, *(next(free) for _ in range(wanted - len(names)))]


def fork(
    context: MachineContext,
    count: int | None,
    names: Sequence[str],
    ports: Sequence[PublishedPort | str],
    network: str | None,
) -> list[Record]:
    """Fork a machine into so many children (see `Machine.fork`)."""
    if (ports or network) and max(count or 1, len(names)) > 1:
        raise InputError(
            "several children share the published ports or the tap, which one machine can use",
            hint="fork them one by one, each with its own --publish or --network",
        )
    if len(set(names)) < len(names):
        raise ConflictError("the same name is given twice", hint="give each name once")
    with ExitStack() as locked:
        record = locked.enter_context(operation(context, "fork"))
        require_state(record, State.RUNNING)
        _require_shared_memory(context)
        require_own_disks(context.spec)
        plug_missing(context)
        engine = context.engine()
        chosen = _child_names(context, count, names)
        records = [
            new_record(
                spec_of_child(context.spec, name, ports, network),
                record.image,
                record.digest,
                engine=engine.name,
                parent=record.id,
                incomplete=True,
            )
            for name in chosen
        ]
        if network is not None:
            ensure_networks(context.manager, MachineContext(context.manager, records[0]).spec.nics)
        for newborn in records:
            engine.require(MachineContext(context.manager, newborn).plan())
        with creating(context.manager, records, engine) as children:
            _make(context, record, children, engine)
            # The parent need not wait for its children's guests.
            locked.close()
            for child in children:
                introduce(child)
            return [child.last for child in children]


def _require_shared_memory(context: MachineContext) -> None:
    if context.spec.strict:
        name = context.last.name
        raise InputError(
            f"{name} has strict isolation, and a fork shares memory with its parent",
            hint=f"snapshot its disk: cerne snapshot create {name} --no-memory, and make a machine"
            " from that",
            machine=name,
        )


def _make(
    parent: MachineContext, record: Record, children: Sequence[MachineContext], engine: Engine
) -> None:
    with unmade_directory(parent.home, "fork") as directory, ExitStack() as chosen:
        cards = [chosen.enter_context(connecting(child)) for child in children]
        chosen.enter_context(in_cells(children))
        with (
            storage_errors(f"forking {record.name}", parent.home.data),
            saving(parent, record, directory, done="forked"),
        ):
            layers = freeze(parent)
            under = [layer.stem for layer in layers.values()]
            parent.store.refer_to_layers([child.id for child in children], under)
            for child in children:
                lay(child, layers)
            faults.step("children made")
            plans = [
                connected.in_plan(child.plan())
                for child, connected in zip(children, cards, strict=True)
            ]
            forked = _forked(parent, record, plans, engine, directory)
            faults.step("forked")
        if forked is None:
            forked = [engine.start(replace(plan, saved=directory)) for plan in plans]
        for child, instance in zip(children, forked, strict=True):
            give_resources(child, instance)
            kept = instance.record.to_json()
            child.last = child.store.note_process(child.last, instance.process, instance=kept)
            faults.step("child noted")


def _forked(
    parent: MachineContext,
    record: Record,
    children: Sequence[LaunchPlan],
    engine: Engine,
    directory: Path,
) -> list[Instance] | None:
    """The children that run; or None where the parent was saved to a directory instead."""
    instance = parent.instance(record)
    if engine.capabilities.fork:
        return instance.fork(parent.disks(), children)
    instance.save(directory, parent.disks(), resume=True)
    return None
