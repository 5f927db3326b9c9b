"""The machine-id(5) of guests, which the host derives from the IDs of their machines."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cerne.spec.machine import MachineSpec


def machine_id(machine: str) -> str:
    """The machine-id(5) of the guest of the machine with this ID."""
    return hashlib.sha256(f"machine-id of {machine}".encode()).hexdigest()[:32]


def has_own_identity(spec: MachineSpec, *, has_disk: bool) -> bool:
    """Whether its guest gives up the identity of the machine that its disk is from.

    A guest that is in memory alone has none.
    """
    return spec.identity == "own" and has_disk
