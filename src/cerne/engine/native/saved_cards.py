"""The network cards in a state that our own VMM saved (`cerne.devices.virtio.net.device`)."""

from __future__ import annotations

from pathlib import Path

from cerne.devices.state import SavedState
from cerne.engine.saved import STATE_FILE
from cerne.errors import DamagedError
from cerne.vmm.snapshot import read_state

_OF_CARDS = "offloads"
"""What is in the state of a network card and of no other device."""


def saved_cards(directory: Path) -> int:
    """How many network cards a saved machine has.

    Raises:
        DamagedError: it is not a saved machine.
    """
    try:
        with (directory / STATE_FILE).open("rb") as file:
            state = SavedState("a machine", read_state(file.fileno()))
    except OSError as error:
        raise DamagedError(f"the state of the saved machine is not readable: {error}") from error
    functions = state.section("pci").section("bus").plain("functions")
    return sum(_is_card(function) for function in functions.values())


def _is_card(function: object) -> bool:
    device = function.get("device") if isinstance(function, dict) else None
    return isinstance(device, dict) and _OF_CARDS in device
