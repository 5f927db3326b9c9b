"""The network cards in a state that QEMU saved.

QEMU ends a migration's stream with a description of its sections in JSON (docs/devel/migration of
QEMU, vmdesc). Only the names of sections are looked for there.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cerne.engine.saved import STATE_FILE
from cerne.errors import DamagedError

_DESCRIPTION = b'"devices": ['
_CARD = re.compile(rb'"name": "[0-9a-f:.]{1,64}/virtio-net"')
_LARGEST_DESCRIPTION = 4 << 20


def saved_cards(directory: Path) -> int | None:
    """How many network cards a saved machine has; None if its state has no description.

    Raises:
        DamagedError: the state is not readable.
    """
    try:
        with (directory / STATE_FILE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LARGEST_DESCRIPTION))
            end = file.read(_LARGEST_DESCRIPTION)
    except OSError as error:
        raise DamagedError(f"the state of the saved machine is not readable: {error}") from error
    _, found, description = end.rpartition(_DESCRIPTION)
    return len(_CARD.findall(description)) if found else None
