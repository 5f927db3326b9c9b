"""The CPU weight of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne import faults
from cerne.manager.machines.context import MachineContext

if TYPE_CHECKING:
    from cerne.engine.base import Instance


def take_weight(context: MachineContext, instance: Instance) -> None:
    """Give its process, which was just started, the CPU weight that it is to have, if any.

    Raises:
        HostError: the host does not let this user do so.
    """
    weight = context.spec.cpu_weight
    if weight is not None:
        instance.set_cpu_weight(weight)
        faults.step("weighed")
