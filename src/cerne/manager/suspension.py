"""Suspending a machine to its disk, and waking it.

What it is saved to is complete before its process ends, and is removed once it runs again: whoever
is killed midway leaves a machine that runs, or one that is suspended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne import faults
from cerne.images.files import storage_errors, sync_directory
from cerne.manager.attachments import require_own_disks
from cerne.manager.store import State

if TYPE_CHECKING:
    from cerne.manager.life import Life


def suspend(life: Life) -> None:
    """Save a machine's memory and end its process (see `Machine.suspend`)."""
    with life.operation("suspend") as record:
        life.require(record, State.RUNNING, State.PAUSED)
        require_own_disks(life.spec)
        life.plug_missing()
        instance = life.instance(record)
        directory = life.home.half_saved(life.id)
        with (
            storage_errors(f"suspending {record.name}", life.directory),
            life.saving(record, directory),
        ):
            instance.save(directory, life.disks(), resume=False)
            faults.step("memory saved")
            directory.rename(life.saved)
            sync_directory(life.directory)
            faults.step("memory kept")
            life.last = life.kill(life.last, "", State.SUSPENDED)


def wake(life: Life) -> None:
    """Let a suspended machine go on (see `Machine.wake`)."""
    with life.operation("wake") as record:
        life.require(record, State.SUSPENDED)
        life.launch(life.engine(), life.saved)
    life.tell()
