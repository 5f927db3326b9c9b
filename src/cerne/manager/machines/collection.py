"""Removing the layers that nothing needs any more."""

from __future__ import annotations

import contextlib
from functools import partial

from cerne.errors import BusyError
from cerne.manager.disks.layers import Layers
from cerne.manager.machines.context import ManagerContext
from cerne.manager.warm.template_files import templates_of


def collect(manager: ManagerContext) -> None:
    """Remove the layers that no machine, no snapshot and no template needs any more."""
    # What another command is at now is not waited for: the next one collects.
    with contextlib.suppress(BusyError):
        Layers(manager.home, manager.store).collect(partial(_kept_layers, manager))


def _kept_layers(manager: ManagerContext) -> list[str]:
    """The layers of templates."""
    return [template.layer for template in templates_of(manager.home) if template.layer]
