"""Upgrades of saved states: each older format has one function, which converts it to the next.

A function takes and returns the tree of a state (`cerne.vmm.snapshot`) and uses no device's code:
devices change, old formats do not. A change of a device's saved state raises `FORMAT` by one, with
a function here and a machine saved in the old format in ``tests/engine/saved``. The oldest is 6.
"""

from __future__ import annotations

from cerne import upgrades
from cerne.devices.state import PlainState
from cerne.upgrades import Upgrades, require_format

_WHAT = "the saved state of the machine"

OLDEST = 6
FORMAT = 7
"""The format that is written."""


def _from_6(state: PlainState) -> PlainState:
    """Before 7 no memory was plugged, and machines had no device for it."""
    return {**state, "headroom": 0, "plugged": []}


UPGRADES: Upgrades = {6: _from_6}
"""The function that converts a state from this format to the next one."""


def require_known(number: int) -> None:
    """Refuse a state in a format that this Cerne does not read.

    Raises:
        DamagedError: a newer Cerne wrote it, or one before format 6.
    """
    require_format(number, FORMAT, UPGRADES, _WHAT)


def upgraded(state: PlainState, number: int) -> PlainState:
    """Convert a state of a known format to the format that devices read.

    Raises:
        DamagedError: the format is unknown, or the state does not match it.
    """
    return upgrades.upgraded(state, number, FORMAT, UPGRADES, _WHAT)
