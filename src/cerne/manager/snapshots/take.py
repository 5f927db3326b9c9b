"""Taking a snapshot of a machine."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import InputError
from cerne.images.files import storage_errors, sync_directory
from cerne.manager.lock import held
from cerne.manager.machines.attach import plug_missing, require_own_disks
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.disks import freeze, own_disks
from cerne.manager.machines.operation import operation
from cerne.manager.machines.saving import saving
from cerne.manager.machines.states import require_state
from cerne.manager.recovery import discard
from cerne.manager.snapshots.manifest import Manifest
from cerne.manager.store import Record, SnapshotRow, State, snapshot_name_in_use
from cerne.spec.limits import ROOT_SERIAL
from cerne.spec.names import check_name

if TYPE_CHECKING:
    from cerne.images import Progress

_KEPT = (
    State.RUNNING,
    State.PAUSED,
    State.DEFINED,
    State.STOPPED,
    State.FAILED,
)


def take(
    context: MachineContext, name: str | None, progress: Progress, *, memory: bool
) -> SnapshotRow:
    """Make a snapshot of a machine (see `Machine.snapshot`)."""
    store, home = context.store, context.home
    chosen = "" if name is None else check_name(name, "a snapshot's")
    if chosen and store.find_snapshot(chosen) is not None:
        raise snapshot_name_in_use(chosen)
    with operation(context, "snapshot") as record:
        require_state(record, *_KEPT)
        runs = record.state.live
        require_own_disks(context.spec)
        if runs:
            plug_missing(context)
        if not runs and not own_disks(context):
            raise InputError(
                f"{record.name} is {record.state} and has no own disk, so a snapshot of it would"
                " be empty",
                hint=f"start it first: cerne start {record.name}",
            )
        snapshot_id = uuid.uuid4().hex[:12]
        directory = home.snapshot_directory(snapshot_id)
        with (
            held(home.machine_lock(snapshot_id), "snapshot", chosen or record.name),
            _undone(context, snapshot_id),
            storage_errors(f"keeping {record.name}", home.data),
        ):
            progress(f"saving {record.name}", 0, None)
            layers = _kept(context, record, directory) if runs else freeze(context)
            progress(f"keeping {record.name}", 0, None)
            if not memory:
                discard(directory)
            ids = {serial: layer.stem for serial, layer in layers.items()}
            row = SnapshotRow(
                id=snapshot_id,
                name=chosen,
                layer=ids.pop(ROOT_SERIAL, ""),
                manifest=_manifest(context, record, ids, memory=runs and memory).model_dump_json(),
                created=time.time(),
            )
            faults.step("snapshot whole")
            row = store.add_snapshot(row, record, ids.values())
            faults.step("snapshot added")
    return row


def _kept(context: MachineContext, record: Record, directory: Path) -> dict[str, Path]:
    """Save a machine that runs; the layers that are its disks as its memory knows them."""
    instance = context.instance(record)
    with saving(context, record, directory):
        layers = freeze(context)
        instance.save(directory, context.disks(), resume=True)
        sync_directory(directory.parent)
        faults.step("memory saved")
    return layers


@contextmanager
def _undone(context: MachineContext, snapshot_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException:
        discard(context.home.snapshot_directory(snapshot_id))
        context.home.machine_lock(snapshot_id).unlink(missing_ok=True)
        collect(context.manager)
        raise


def _manifest(
    context: MachineContext, record: Record, data_layers: dict[str, str], *, memory: bool
) -> Manifest:
    instance = context.instance(record).record if memory else None
    return Manifest(
        machine=record.id,
        spec=context.spec,
        image=record.image,
        digest=record.digest,
        engine=instance.engine if instance else "",
        fingerprint=instance.fingerprint if instance else "",
        data_layers=data_layers,
    )
