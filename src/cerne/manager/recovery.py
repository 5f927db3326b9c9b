"""What a command removes after a machine's end, or after another command was killed."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.host.cell import Cell
from cerne.host.members import Members
from cerne.host.removal import remove_tree
from cerne.manager.lock import held

if TYPE_CHECKING:
    from cerne.manager.home import Home


def discard_runtime(home: Home, machine_id: str) -> None:
    """End what processes a machine has, and remove what it had of the host while it ran."""
    Members(home.machine_runtime(machine_id)).end()
    Cell(home.machine_group(machine_id)).end()
    discard(home.machine_runtime(machine_id))


@contextlib.contextmanager
def unmade_directory(home: Home, operation: str) -> Iterator[Path]:
    """Where a directory may be made, which is swept where this process was killed."""
    work_id = uuid.uuid4().hex[:12]
    directory, lock = home.snapshot_directory(work_id), home.machine_lock(work_id)
    with held(lock, operation, "this home"):
        try:
            yield directory
        finally:
            discard(directory)
            lock.unlink(missing_ok=True)


def names_in(directory: Path) -> set[str]:
    """What is in a directory, by name; each command asks it of thousands."""
    with os.scandir(directory) as entries:
        return {entry.name for entry in entries}


def discard(directory: Path) -> None:
    """Remove a directory and all in it; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        remove_tree(directory)
