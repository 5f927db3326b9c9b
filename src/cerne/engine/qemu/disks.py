"""The files of disks, opened for QEMU."""

from __future__ import annotations

from cerne.engine.opened import Opened
from cerne.engine.plan import DiskPlan


def opened_disk(disk: DiskPlan, opened: Opened) -> list[int]:
    """Open a disk's file for reading, and for writing if it is writable.

    Raises:
        StorageError: opening it failed.
        ConflictError: another machine uses it.
    """
    opens = opened.locked if disk.shared else opened.existing
    if disk.read_only:
        return [opens(disk.path, writable=False)]
    return [opens(disk.path, writable=True), opened.existing(disk.path)]
