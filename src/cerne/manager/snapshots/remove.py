"""Removing a snapshot, and what was left of those that were never complete."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING

from cerne import faults
from cerne.manager.lock import held, is_held, remove_unheld
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import ManagerContext
from cerne.manager.recovery import discard, names_in
from cerne.manager.snapshots.kept import unknown_snapshot
from cerne.manager.store import SnapshotRow, Store

if TYPE_CHECKING:
    from cerne.manager.home import Home


def remove(manager: ManagerContext, row: SnapshotRow) -> None:
    """Remove a snapshot of any machine (see `Snapshot.remove`)."""
    home = manager.home
    with held(home.machine_lock(row.id), "remove", row.name):
        if manager.store.find_snapshot(row.id) is None:
            raise unknown_snapshot(row.name)
        manager.store.remove_snapshot(row)
        faults.step("snapshot forgotten")
        discard(home.snapshot_directory(row.id))
        home.machine_lock(row.id).unlink(missing_ok=True)
    collect(manager)


def sweep(home: Home, store: Store, known: Set[str]) -> None:
    """Remove what commands that were killed left of snapshots; not of those that are known."""
    for snapshot_id in names_in(home.snapshots) - known:
        lock = home.machine_lock(snapshot_id)
        # It may have been added, and its lock freed, since the list was read.
        if not is_held(lock) and store.find_snapshot(snapshot_id) is None:
            discard(home.snapshot_directory(snapshot_id))
            remove_unheld(lock)
