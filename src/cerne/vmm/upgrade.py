"""Saved states of older formats: each format has one function, which makes the next one of it.

A function takes and gives the tree of a state (`cerne.vmm.snapshot`) and looks at no device's code:
devices change, old formats do not. A change of what a device saves raises `FORMAT` by one, with a
function here and a machine saved in the old format in ``tests/engine/saved``. The oldest is 6.
"""

from __future__ import annotations

from cerne import upgrades
from cerne.devices.state import PlainState
from cerne.upgrades import Upgrades, require_format

_WHAT = "the saved state of the machine"

OLDEST = 6
FORMAT = 6
"""What is written."""

UPGRADES: Upgrades = {}
"""What makes a state of the next format of one of this format."""


def require_known(number: int) -> None:
    """Refuse a state in a format that cannot be read here.

    Raises:
        DamagedError: the format is of a newer Cerne, or of one before format 6.
    """
    require_format(number, FORMAT, UPGRADES, _WHAT)


def upgraded(state: PlainState, number: int) -> PlainState:
    """A state of a format that is known, in the format that devices read.

    Raises:
        DamagedError: the format is not known, or the state is not of it.
    """
    return upgrades.upgraded(state, number, FORMAT, UPGRADES, _WHAT)
