"""Starting a machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CerneError, DamagedError
from cerne.manager.capacity import claim_to_run, fitting
from cerne.manager.machines.cards import connecting
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.disks import commit_disks, merge_layers, settle_disks
from cerne.manager.machines.ending import clear_runtime, not_started
from cerne.manager.machines.recovery import sweep_abandoned
from cerne.manager.machines.resources import give_resources, in_cells
from cerne.manager.machines.telling import to_be_told
from cerne.manager.recovery import discard
from cerne.manager.store import Record
from cerne.manager.store.promises import Resource
from cerne.spec.limits import ROOT_SERIAL

if TYPE_CHECKING:
    from cerne.engine.base import Engine
    from cerne.manager.warm.template_files import Template

_log = logging.getLogger(__name__)


def launch(
    context: MachineContext,
    engine: Engine,
    saved: Path | None = None,
    onto: Mapping[str, Path] | None = None,
) -> Record:
    """Start its process, which boots, or goes on from what `Engine.save` wrote to `saved`.

    With `onto`, its disks of these serials are replaced by empty overlays on these layers.
    Where anything fails it has the disks that it had, and is suspended if it was, or else
    ``failed``.

    Raises:
        CapacityError, ConflictError, HostError: the host cannot run it now.
        EngineError: it did not start.
    """
    record, plan = context.last, context.plan(saved)
    engine.require(plan)
    # One that a command left which was killed after the machine ran.
    commit_disks(context)
    settle_disks(context)
    sweep_abandoned(context.manager)
    under = [layer.stem for layer in (onto or {}).values()]
    # Imported only now, because each command loads this module.
    from cerne.manager.machines.balance import make_room

    claim = claim_to_run(context.home, context.spec, engine)
    fitting(context.manager, lambda: context.store.reserve(record, engine.name, claim, under))
    make_room(context.manager, claim.needs[Resource.MEMORY])
    try:
        for serial, layer in (onto or {}).items():
            context.layers.replace(context.home.disk(context.id, serial), layer)
        clear_runtime(context)
        if saved is None:
            merge_layers(context)
            plan.console_log.unlink(missing_ok=True)
        with connecting(context) as cards, in_cells([context]):
            instance = engine.start(cards.in_plan(context.plan(saved)))
        process, kept = instance.process, instance.record.to_json()
        _log.debug("%s runs on %s as process %d", record.name, engine.name, process.pid)
        faults.step("started")
        give_resources(context, instance)
        if record.incomplete:
            context.last = context.store.note_process(record, process, instance=kept)
        else:
            untold = to_be_told(context, record, saved, agent=instance.record.agent)
            context.last = context.store.set_process(record, process, untold, instance=kept)
    except BaseException as error:
        why = error.message if isinstance(error, CerneError) else "its start was interrupted"
        not_started(context, context.store.get(record.id), why)
        raise
    faults.step("running")
    # From here on its disks are no longer those that the memory of before knows.
    commit_disks(context)
    context.layers.settle(context.id)
    discard(context.saved)
    return context.last


def start_new(context: MachineContext, engine: Engine, template: Template | None) -> None:
    """Start a machine that never ran, from a template if there is one.

    A template that is damaged, or that its engine refuses, is removed, and the machine boots.

    Raises:
        CerneError: what `launch` raises.
    """
    if template is not None:
        onto = {ROOT_SERIAL: context.home.layer(template.layer)} if template.layer else {}
        try:
            launch(context, engine, template.directory, onto)
        except DamagedError as error:
            _log.warning(
                "%s boots, because its template is not usable: %s", context.last.name, error
            )
            discard(template.directory)
        else:
            return
    launch(context, engine)
