"""Saved states of older formats: each format has one function, which makes the next one of it.

A function takes and gives the tree of a state (`cerne.vmm.snapshot`) and looks at no device's code:
devices change, old formats do not. A change of what a device saves raises `FORMAT` by one, with a
function here and a machine saved in the old format in ``tests/engine/saved``. The oldest is 6.
"""

from __future__ import annotations

from collections.abc import Callable

from cerne.devices.state import PlainState
from cerne.errors import DamagedError

OLDEST = 6
FORMAT = 6
"""What is written."""

UPGRADES: dict[int, Callable[[PlainState], PlainState]] = {}
"""What makes a state of the next format of one of this format."""


def require_known(number: int) -> None:
    """Refuse a state in a format that cannot be read here.

    Raises:
        DamagedError: the format is of a newer Cerne, or of one before format 6.
    """
    if number > FORMAT:
        raise DamagedError(
            f"the machine was saved in format {number} by a newer Cerne; this one reads formats"
            f" {OLDEST} to {FORMAT}",
            hint="restore it with the version of Cerne that saved it",
        )
    if number < OLDEST:
        raise DamagedError(
            f"the machine was saved in format {number}; this Cerne reads formats {OLDEST} to"
            f" {FORMAT}",
            hint="boot the machine anew: its disks are as they were",
        )


def upgraded(state: PlainState, number: int) -> PlainState:
    """A state of a format that is known, in the format that devices read.

    Raises:
        DamagedError: the format is not known, or the state is not of it.
    """
    require_known(number)
    for each in range(number, FORMAT):
        try:
            state = UPGRADES[each](state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DamagedError(
                f"the saved state is not in format {each}, as it says: {error!r}"
            ) from error
    return state
