"""Runs machines that nobody asked for: a template or an image is made by one, and then it is gone.

Their rows are incomplete, so that one that a killed command left is removed like a fork's
(`cerne.manager.machines.creation`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cerne import faults
from cerne.manager.machines.cards import connecting
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.watch import BootWatch

if TYPE_CHECKING:
    from cerne.engine.base import Engine, Instance
    from cerne.engine.plan import LaunchPlan
    from cerne.images import Progress


def start_helper(context: MachineContext, engine: Engine, plan: LaunchPlan, kind: str) -> Instance:
    """Boot an incomplete machine of this kind (`cerne.manager.store.HELPERS`) by a plan.

    Raises:
        HostError, EngineError: it does not start.
    """
    engine.require(plan)
    with connecting(context) as cards:
        instance = engine.start(cards.in_plan(plan))
    kept = instance.record.to_json()
    context.last = context.store.note_process(context.last, instance.process, instance=kept)
    faults.step(f"{kind} booting")
    return instance


def boots_on(
    context: MachineContext, instance: Instance, what: str, progress: Progress
) -> Callable[[], bool]:
    """What says whether such a guest may still become ready, and reports `what` as progress."""
    watch = BootWatch(context.last.name, instance.process, context.console_log)

    def goes_on() -> bool:
        progress(what, 0, None)
        return watch.check()

    return goes_on
