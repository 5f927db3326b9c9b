"""The guarantees, limits and weights of a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne import faults
from cerne.manager.machines.context import MachineContext

if TYPE_CHECKING:
    from cerne.engine.base import Instance


def give_resources(context: MachineContext, instance: Instance) -> None:
    """Give its process, which was just started, the resources of its specification, if any.

    Raises:
        HostError: the host does not let this user do so.
    """
    resources = context.spec.resources
    if not resources.is_empty:
        instance.set_resources(resources)
        faults.step("resources given")
