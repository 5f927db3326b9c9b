"""Suspending a machine to its disk, and waking it.

Its saved state is complete before its process ends, and is removed when it runs again: a command
that is killed midway leaves a machine that runs, or one that is suspended.
"""

from __future__ import annotations

from cerne import faults
from cerne.images.files import storage_errors, sync_directory
from cerne.manager.machines.attach import plug_missing, require_own_disks
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.ending import kill
from cerne.manager.machines.launch import launch
from cerne.manager.machines.operation import operation
from cerne.manager.machines.saving import saving
from cerne.manager.machines.states import require_state
from cerne.manager.machines.telling import tell
from cerne.manager.store import State


def suspend(context: MachineContext) -> None:
    """Save a machine's memory and end its process (see `Machine.suspend`)."""
    with operation(context, "suspend") as record:
        require_state(record, State.RUNNING, State.PAUSED)
        require_own_disks(context.spec)
        plug_missing(context)
        instance = context.instance(record)
        directory = context.home.half_saved(context.id)
        with (
            storage_errors(f"suspending {record.name}", context.directory),
            saving(context, record, directory),
        ):
            instance.save(directory, context.disks(), resume=False)
            faults.step("memory saved")
            directory.rename(context.saved)
            sync_directory(context.directory)
            faults.step("memory kept")
            context.last = kill(context, context.last, "", State.SUSPENDED)


def wake(context: MachineContext) -> None:
    """Let a suspended machine go on (see `Machine.wake`)."""
    with operation(context, "wake") as record:
        require_state(record, State.SUSPENDED)
        launch(context, context.engine(), context.saved)
    tell(context)
