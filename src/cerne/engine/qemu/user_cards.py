"""What serves the user-mode cards of a machine: passt, or QEMU's own user mode (slirp).

QEMU's own user mode has state in a saved machine, and nothing else loads that. So the fingerprint
of a machine with passt has a mark, and one that was saved without it goes on with QEMU's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne.engine.plan import UserNic
from cerne.engine.saved import SavedMachine
from cerne.network.passt import has_passt

if TYPE_CHECKING:
    from cerne.engine.plan import LaunchPlan

MARK = " passt"
"""Of the fingerprint of a machine whose cards passt serves."""


def by_passt(plan: LaunchPlan) -> bool:
    """Whether passt serves the user-mode cards of a machine, and not QEMU itself."""
    if not has_passt():
        return False
    return plan.saved is None or MARK in SavedMachine.read(plan.saved).fingerprint


def has_own_user_mode(plan: LaunchPlan) -> bool:
    """Whether QEMU itself serves network cards, by connections of this host."""
    return any(isinstance(nic, UserNic) for nic in plan.nics) and not by_passt(plan)
