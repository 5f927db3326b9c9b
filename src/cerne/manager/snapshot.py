"""Snapshots: a machine as it was, its memory, devices and disk together.

The disk is a layer (`cerne.manager.disks.layers`), the memory a directory that the engine wrote.
The row in the store comes last: without it there is no snapshot, and what is there is swept.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.engine.plan import UserNic
from cerne.errors import InputError, NotFoundError, StateError
from cerne.images.files import storage_errors, sync_directory
from cerne.manager.lock import held, is_held, remove_unheld
from cerne.manager.machines.attach import plug_missing, require_own_disks
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext, ManagerContext
from cerne.manager.machines.creation import creating, new_record, spec_of_child
from cerne.manager.machines.disks import freeze, lay, own_disks
from cerne.manager.machines.ending import kill
from cerne.manager.machines.launch import launch
from cerne.manager.machines.operation import operation
from cerne.manager.machines.readiness import await_ready, introduce
from cerne.manager.machines.saving import saving
from cerne.manager.machines.states import require_state
from cerne.manager.machines.stats import allocated
from cerne.manager.machines.telling import READY_TIMEOUT, tell
from cerne.manager.manifest import Manifest, read_manifest
from cerne.manager.recovery import discard, names_in
from cerne.manager.store import Record, SnapshotRow, State, Store, snapshot_name_in_use
from cerne.spec.limits import ROOT_SERIAL
from cerne.spec.names import check_name
from cerne.spec.network import NetworkKind, parse_network

if TYPE_CHECKING:
    from cerne.engine.base import Engine
    from cerne.engine.plan import LaunchPlan
    from cerne.images import Progress
    from cerne.manager.home import Home
    from cerne.manager.machines.machine import Machine
    from cerne.spec.ports import PublishedPort


class Snapshot:
    """A snapshot that is in the store. Get one from `Manager.snapshots` or `Machine.snapshot`."""

    def __init__(self, manager: ManagerContext, row: SnapshotRow) -> None:
        self._context = manager
        self._home = manager.home
        self._row = row
        self.manifest: Manifest = read_manifest(row.manifest, f"the snapshot {row.name}")

    def __repr__(self) -> str:
        return f"<Snapshot {self.name} of {self.manifest.spec.name}>"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits."""
        return self._row.id

    @property
    def name(self) -> str:
        """Its name."""
        return self._row.name

    @property
    def created(self) -> float:
        """When it was made, in seconds since the epoch."""
        return self._row.created

    @property
    def memory(self) -> Path | None:
        """The directory of its memory; None where it has its disk alone."""
        return self._home.snapshot_directory(self.id) if self.manifest.has_memory else None

    @property
    def layer(self) -> Path | None:
        """Its disk; None where its image has none."""
        return self._home.layer(self._row.layer) if self._row.layer else None

    @property
    def layers(self) -> dict[str, Path]:
        """All its disks, by their serials."""
        root = {} if self.layer is None else {ROOT_SERIAL: self.layer}
        return root | data_layers(self._home, self.manifest)

    @property
    def _layer_ids(self) -> list[str]:
        return [layer.stem for layer in self.layers.values()]

    @property
    def size(self) -> int:
        """Bytes of this host's disk that its memory takes."""
        return 0 if self.memory is None else allocated(self.memory)

    def restore(self) -> Machine:
        """Take the machine that it is of back to it; what it has done since is lost.

        With memory it goes on from there at once, or else it boots. Where it cannot be restored
        the machine keeps the disk that it has.

        Raises:
            NotFoundError: that machine has been removed.
            StateError: it has other disks or network cards now.
            DamagedError, HostError: the snapshot is damaged, or this host cannot go on with it.
            CerneError: what `Machine.start` raises.
        """
        from cerne.manager.machines.machine import Machine

        record = self._context.store.find_id(self.manifest.machine)
        if record is None:
            removed = f"the machine that {self.name} is of, {self.manifest.spec.name}, is not there"
            imported = f"{self.name} was imported, and is of no machine here"
            raise NotFoundError(
                removed if self.manifest.machine else imported,
                hint=f"make another of it: cerne snapshot restore {self.name} --as NAME",
            )
        context = MachineContext(self._context, record)
        with self._held("restore"), operation(context, "restore") as present:
            self._require_same_devices(context)
            engine = self._engine()
            # What cannot be is refused before the machine that runs is ended; what it has is its.
            engine.require(_without_what_it_has(context.plan(self.memory)))
            if present.state.live:
                context.last = kill(context, present, f"killed, to go back to {self.name}")
            launch(context, engine, self.memory, self.layers)
        if self.memory is None:
            await_ready(context, READY_TIMEOUT)
        else:
            tell(context)
        collect(context.manager)
        return Machine(self._context, context.last)

    def restore_as(
        self, name: str, ports: Sequence[PublishedPort | str] = (), network: str | None = None
    ) -> Machine:
        """Make another machine of it, which goes on from there, or boots where it has no memory.

        `network` names another tap where it has one.

        Raises:
            InputError, ConflictError: the name or the network cannot be, or is in use.
            CapacityError: the host cannot guarantee its memory.
            DamagedError, HostError: the snapshot is damaged, or this host cannot go on with it.
            CerneError: it did not start; nothing is left of it.
        """
        from cerne.manager.machines.machine import Machine

        manifest = self.manifest
        if not manifest.machine and network is None:
            self._refuse_strange_tap()
        spec = spec_of_child(manifest.spec, name, ports, network)
        record = new_record(
            spec,
            manifest.image,
            manifest.digest,
            parent=manifest.machine or self.id,
            incomplete=manifest.has_memory,
        )
        with self._held("restore"):
            if manifest.has_memory:
                return Machine(self._context, self._continued(record))
            machine = Machine(self._context, self._defined(record))
        try:
            machine.start()
        except BaseException as error:
            machine.undo(error)
            raise
        return machine

    def export(self, target: Path, progress: Progress | None = None) -> None:
        """Write it, with the image that it is of, to one file that another host can import.

        Raises:
            InputError: the file is there already, or directories of this host are mounted in it.
            StorageError: it cannot be written; nothing is left of it.
        """
        from cerne.images.progress import silent
        from cerne.manager.transfer import export_snapshot

        with self._held("export"):
            export_snapshot(self._context, self, target, progress or silent)

    def remove(self) -> None:
        """Remove it; machines that were made of it are not touched."""
        remove(self._context, self._row)

    def _continued(self, record: Record) -> Record:
        """Another machine, gone on from the memory."""
        engine = self._engine()
        engine.require(MachineContext(self._context, record).plan(self.memory))
        with creating(self._context, [record]) as (context,):
            context.store.refer_to_layers([context.id], self._layer_ids)
            lay(context, self.layers)
            faults.step("children made")
            launch(context, engine, self.memory)
            introduce(context)
            return context.last

    def _defined(self, record: Record) -> Record:
        """Another machine with the disk, not started."""
        context = MachineContext(self._context, record)
        with held(context.lock_path, "create", record.name):
            try:
                context.directory.mkdir(mode=0o700)
                lay(context, self.layers)
                context.store.add(record, self._layer_ids)
            except BaseException:
                discard(context.directory)
                context.lock_path.unlink(missing_ok=True)
                raise
        return record

    def _require_same_devices(self, context: MachineContext) -> None:
        then, now = self.manifest.spec, context.spec
        if (then.data_disks, then.added_nics) != (now.data_disks, now.added_nics):
            raise StateError(
                f"{context.last.name} has other disks or network cards than it had in {self.name}",
                hint=f"make another machine of it: cerne snapshot restore {self.name} --as NAME",
                machine=context.last.name,
            )

    def _refuse_strange_tap(self) -> None:
        if parse_network(self.manifest.spec.network).kind is NetworkKind.TAP:
            raise InputError(
                f"{self.name} was imported, and its machine had a tap of another host",
                hint=f"name one of this host: cerne snapshot restore {self.name} --as NAME"
                " --network tap:INTERFACE",
            )

    def _engine(self) -> Engine:
        wanted = self.manifest.engine or self.manifest.spec.engine
        return self._context.choose_engine(wanted)

    @contextmanager
    def _held(self, operation: str) -> Iterator[None]:
        with _held(self._context, self._row, operation):
            yield


@contextmanager
def _held(manager: ManagerContext, row: SnapshotRow, operation: str) -> Iterator[None]:
    with held(manager.home.machine_lock(row.id), operation, row.name):
        if manager.store.find_snapshot(row.id) is None:
            raise unknown_snapshot(row.name)
        yield


def remove(manager: ManagerContext, row: SnapshotRow) -> None:
    """Remove a snapshot, whatever it is of (see `Snapshot.remove`)."""
    home = manager.home
    with _held(manager, row, "remove"):
        manager.store.remove_snapshot(row)
        faults.step("snapshot forgotten")
        discard(home.snapshot_directory(row.id))
        home.machine_lock(row.id).unlink(missing_ok=True)
    collect(manager)


def take(context: MachineContext, name: str | None, *, memory: bool) -> Snapshot:
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
                f"{record.name} is {record.state}, and has no disk of its own: there is nothing"
                " to keep",
                hint=f"start it first: cerne start {record.name}",
            )
        snapshot_id = uuid.uuid4().hex[:12]
        directory = home.snapshot_directory(snapshot_id)
        with (
            held(home.machine_lock(snapshot_id), "snapshot", chosen or record.name),
            _undone(context, snapshot_id),
            storage_errors(f"keeping {record.name}", home.data),
        ):
            layers = _kept(context, record, directory) if runs else freeze(context)
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
    return Snapshot(context.manager, row)


def sweep(home: Home, store: Store, known: Set[str]) -> None:
    """Remove what commands that were killed left of snapshots; not of those that are known."""
    for snapshot_id in names_in(home.snapshots) - known:
        lock = home.machine_lock(snapshot_id)
        # It may have been added, and its lock freed, since the list was read.
        if not is_held(lock) and store.find_snapshot(snapshot_id) is None:
            discard(home.snapshot_directory(snapshot_id))
            remove_unheld(lock)


def unknown_snapshot(name: str) -> NotFoundError:
    """The error that there is no snapshot of this name."""
    return NotFoundError(f"there is no snapshot named {name}", hint="see: cerne snapshot ls")


_KEPT = (
    State.RUNNING,
    State.PAUSED,
    State.DEFINED,
    State.STOPPED,
    State.FAILED,
)


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


def data_layers(home: Home, manifest: Manifest) -> dict[str, Path]:
    """A snapshot's disks beside the root disk, by their serials."""
    return {serial: home.layer(layer) for serial, layer in manifest.data_layers.items()}


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


def _without_what_it_has(plan: LaunchPlan) -> LaunchPlan:
    """The plan without the ports and the taps of this host that are a machine's alone."""
    cards = [UserNic(nic.mac) for nic in plan.nics if isinstance(nic, UserNic)]
    return replace(plan, nics=tuple(cards))
