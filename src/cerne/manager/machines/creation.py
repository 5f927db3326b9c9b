"""Machines that go on from another's memory: all of them are made, or none.

Until its guest has been told who it is, such a machine is incomplete (`Record.incomplete`): its
name is taken and its memory counted, and a command that finds its maker interrupted removes it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import InputError
from cerne.manager.capacity import claims_of_new, fitting
from cerne.manager.lock import held
from cerne.manager.machines.context import MachineContext, ManagerContext
from cerne.manager.machines.ending import abandon, clear_runtime
from cerne.manager.machines.recovery import sweep_abandoned
from cerne.manager.machines.watch import quote_logs
from cerne.manager.store import Record, State
from cerne.spec.network import parse_network

if TYPE_CHECKING:
    from cerne.engine.base import Engine
    from cerne.host.process import ProcessIdentity
    from cerne.spec.machine import MachineSpec
    from cerne.spec.ports import PublishedPort


def spec_of_child(
    spec: MachineSpec,
    name: str,
    ports: Sequence[PublishedPort | str] = (),
    network: str | None = None,
) -> MachineSpec:
    """What a machine is that is made of another: the same, but for its name, its ports, its tap.

    Raises:
        InputError: that cannot be a name or a port, or a network of another kind than the other
            has.
    """
    chosen = spec.network if network is None else network
    child = spec.copied().on_network(chosen, ports).changed(name=name)
    if parse_network(child.network).kind is not parse_network(spec.network).kind:
        raise InputError(
            f"a copy of a machine with the network {spec.network!r} cannot use {chosen!r}",
            hint="give another tap if the machine has a tap, another network with a name if it has"
            " one, and leave --network out otherwise",
        )
    return child


def new_record(
    spec: MachineSpec,
    image: str,
    digest: str,
    *,
    engine: str = "",
    parent: str = "",
    incomplete: bool = False,
    client: ProcessIdentity | None = None,
) -> Record:
    """The record of a machine that is not in the store yet."""
    return Record(
        id=uuid.uuid4().hex[:12],
        name=spec.name,
        spec=spec.model_dump_json(),
        image=image,
        digest=digest,
        cpus=spec.cpus,
        memory=spec.memory,
        state=State.STARTING if incomplete else State.DEFINED,
        reason="",
        engine=engine,
        process=None,
        created=time.time(),
        started=None,
        ready=None,
        parent=parent,
        client=client,
        incomplete=incomplete,
    )


@contextmanager
def creating(
    manager: ManagerContext, records: Sequence[Record], engine: Engine
) -> Iterator[list[MachineContext]]:
    """Add incomplete machines; where this block fails, those that are not complete are removed.

    Raises:
        ConflictError: a name is in use.
        CapacityError: the host has not what they need.
    """
    contexts = [MachineContext(manager, record) for record in records]
    sweep_abandoned(manager)
    with ExitStack() as locks:
        for context in contexts:
            locks.enter_context(held(context.lock_path, "fork", context.last.name))
        try:
            claims = claims_of_new(manager.home, contexts, engine)
            fitting(manager, lambda: manager.store.add_incomplete(claims))
        except BaseException:
            for context in contexts:
                context.lock_path.unlink(missing_ok=True)
            raise
        try:
            faults.step("children added")
            for context in contexts:
                context.directory.mkdir(mode=0o700)
                clear_runtime(context)
            yield contexts
        except BaseException as error:
            for context in contexts:
                quote_logs(error, context.logs)
                abandon(context)
            raise
