"""Disks and network cards beside the first: added to a machine and taken from it, even as it runs.

What a machine has is what its specification says. A disk's file is made before it is named there,
and a device is in the machine's process only while it is: after a command that was killed midway
the next operation plugs in what is missing. A disk that is taken out is never removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import ConflictError, InputError, NotFoundError, StateError
from cerne.images.files import storage_errors
from cerne.manager.capacity import claim_with_disks
from cerne.manager.machines.cards import card_on, connected_nic, disconnect_nic
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.cpus import settle_cpus
from cerne.manager.machines.detaching import unplug
from cerne.manager.machines.disks import MADE, settle_disks
from cerne.manager.machines.operation import operation
from cerne.manager.machines.plan import disk_plan, nic_plan
from cerne.manager.machines.resources import give_resources
from cerne.manager.machines.states import require_state
from cerne.manager.networks import ensure_networks
from cerne.manager.on_host import found_disk
from cerne.manager.store import Record, State

if TYPE_CHECKING:
    from cerne.manager.home import Home
    from cerne.spec.disk import Disk
    from cerne.spec.machine import MachineSpec
    from cerne.spec.nic import Nic

_ATTACHABLE = (State.RUNNING, State.PAUSED, State.DEFINED, State.STOPPED, State.FAILED)


def require_own_disks(spec: MachineSpec) -> None:
    """Refuse to keep or to double a machine that writes to a disk which is not its alone.

    Raises:
        InputError: it has such a disk.
    """
    for disk in spec.data_disks:
        if not disk.own and not disk.read_only:
            raise InputError(
                f"{spec.name} writes to {disk.path}, which does not belong to it: a copy of the"
                " machine would write to it too",
                hint=f"detach it first: cerne disk detach {spec.name} {disk.serial}",
            )


def require_not_ours(home: Home, disks: Iterable[Disk]) -> None:
    """Refuse Cerne's own files as disks, by any name, because a guest would write to them.

    Raises:
        ConflictError: there is such a file.
    """
    for disk in disks:
        if disk.path is None:
            continue
        real = disk.path.resolve()
        if _is_ours(home, real) or _is_linked(home, real):
            raise ConflictError(
                f"{disk.path} is a file that Cerne uses itself",
                hint="use a copy of it, or a detached disk: cerne disk detach",
            )


def _is_ours(home: Home, path: Path) -> bool:
    """Whether a file is one that Cerne keeps; not those of disks that were detached."""
    kept = (home.machines, home.layers, home.snapshots, home.templates, home.images, home.runtime)
    data = home.data.resolve()
    return path.parent == data or any(path.is_relative_to(each.resolve()) for each in kept)


def _is_linked(home: Home, path: Path) -> bool:
    """Whether a file of Cerne's own is the same, under another name."""
    status = path.stat()
    if status.st_nlink < 2:
        return False
    own = [home.store, *home.layers.iterdir(), *home.machines.glob("*/*")]
    own += home.images.glob("files/*")
    return any(os.path.samestat(status, each.stat()) for each in own if each.is_file())


def attach_disk(
    context: MachineContext, what: str | Path, serial: str | None, *, read_only: bool
) -> Disk:
    """Add a disk to a machine (see `Machine.attach_disk`)."""
    from cerne.spec.disk import Disk, free_serial

    with operation(context, "attach") as record:
        require_state(record, *_ATTACHABLE)
        spec = context.spec
        chosen, slot = serial or free_serial(spec.disks), spec.free_slot
        if isinstance(what, Path):
            disk = Disk(serial=chosen, slot=slot, path=what, read_only=read_only)
        else:
            disk = Disk.parse(what, chosen, slot, read_only=read_only)
        disk = found_disk(disk)
        changed = spec.changed(disks=(*spec.disks, disk))
        require_not_ours(context.home, [disk])
        _prepare(context, record)
        with storage_errors(f"making a disk of {record.name}", context.directory):
            make_disk(context, disk)
            faults.step("disk made")
            try:
                _change(context, changed, f"disk {disk.serial} attached")
            finally:
                # It is kept if it is named now, and removed if there is no room for it.
                settle_disks(context)
        faults.step("disk noted")
        if record.state.live:
            try:
                context.instance().plug(disk_plan(context.home, context.id, disk))
            except BaseException:
                _change(context, spec, f"disk {disk.serial} not attached")
                # It has never been used.
                _own_file(context, disk).unlink(missing_ok=True)
                raise
            # Its limits are those of all its disks together.
            give_resources(context, context.instance())
        faults.step("disk plugged")
    return disk


def detach_disk(context: MachineContext, which: str, timeout: float, *, force: bool) -> Path:
    """Take a disk from a machine (see `Machine.detach_disk`)."""
    with operation(context, "detach") as record:
        require_state(record, *_ATTACHABLE)
        spec = context.spec
        disk = _find_disk(spec, which)
        _unplug(context, record, disk.number - 1, timeout, force=force)
        faults.step("disk unplugged")
        left = tuple(each for each in spec.disks if each != disk)
        _change(context, spec.changed(disks=left), f"disk {disk.serial} detached")
        faults.step("disk forgotten")
        if disk.path is not None:
            return disk.path
        with storage_errors(f"keeping the disk {disk.serial}", context.home.disks):
            kept = settle_disks(context)[disk.serial]
            # It may go anywhere from now on, where its layers do not follow.
            context.layers.flatten(kept)
        context.layers.settle(context.id)
        collect(context.manager)
    return kept


def attach_nic(context: MachineContext, network: str, fields: Mapping[str, object]) -> Nic:
    """Add a network card to a machine (see `Machine.attach_nic`)."""
    from cerne.spec.nic import Nic

    with operation(context, "attach") as record:
        require_state(record, *_ATTACHABLE)
        spec = context.spec
        nic = Nic.parse(network, slot=spec.free_slot, **fields)
        changed = spec.changed(nics=(*spec.nics, nic))
        ensure_networks(context.manager, [nic])
        _prepare(context, record)
        _change(context, changed, f"nic {nic.number} attached")
        faults.step("nic noted")
        if record.state.live:
            try:
                _plug_nic(context, nic)
                faults.step("nic plugged")
            except BaseException:
                if nic.is_named:
                    disconnect_nic(context, context.store.cards_of(context.id)[nic.number])
                _change(context, spec, f"nic {nic.number} not attached")
                raise
    return nic


def detach_nic(context: MachineContext, which: int | str, timeout: float, *, force: bool) -> None:
    """Take a network card from a machine, by its number or its network's name."""
    with operation(context, "detach") as record:
        require_state(record, *_ATTACHABLE)
        spec = context.spec
        nic = _find_nic(context, record, which)
        card = context.store.cards_of(context.id).get(nic.number)
        if nic.slot is not None:
            _unplug(context, record, nic.slot, timeout, force=force)
        faults.step("nic unplugged")
        if card is not None and record.state.live:
            disconnect_nic(context, card)
            faults.step("nic disconnected")
        left = tuple(each for each in spec.nics if each.number != nic.number)
        _change(context, spec.changed(nics=left), f"nic {nic.number} detached")


def _find_nic(context: MachineContext, record: Record, which: int | str) -> Nic:
    """A card that may be taken from a machine: the first one only if it is stopped."""
    if isinstance(which, str):
        nic = card_on(context, which)
        if nic.slot is None and record.state.live:
            raise StateError(
                f"{record.name} is {record.state}, and its first card stays while it is: that one"
                f" is on the network {which}",
                hint=f"stop it first: cerne stop {record.name}",
                machine=record.name,
            )
        return nic
    for nic in context.spec.added_nics:
        if nic.number == which:
            return nic
    raise NotFoundError(
        f"{record.name} has no removable network card {which}",
        hint=f"see: cerne nic ls {record.name}",
    )


def _plug_nic(context: MachineContext, nic: Nic) -> None:
    if not nic.is_named:
        context.instance().plug(nic_plan(context.id, nic))
        return
    plan, tap = connected_nic(context, nic)
    try:
        context.instance().plug(plan)
    finally:
        os.close(tap)


def plug_missing(context: MachineContext) -> None:
    """Plug into its process what its specification has, and a killed command left out.

    Raises:
        CerneError: plugging it in failed.
    """
    from cerne.engine.plan import slots

    settle_disks(context)
    settle_cpus(context, context.last)
    nics = {nic.number - 1: nic for nic in context.spec.added_nics}
    devices = slots(context.disks())
    if not devices and not nics:
        return
    instance = context.instance()
    plugged = instance.plugged()
    for slot, device in devices.items():
        if slot not in plugged:
            instance.plug(device)
    for slot, nic in nics.items():
        if slot not in plugged:
            _plug_nic(context, nic)
    give_resources(context, instance)


def make_disk(context: MachineContext, disk: Disk) -> None:
    """Make the file of a disk that is a machine's own; it is named once `settle_disks` has run.

    Raises:
        StorageError: making it failed.
    """
    from cerne.storage.overlay import create_empty

    if disk.size is not None:
        file = _own_file(context, disk)
        create_empty(file.with_name(file.name + MADE), disk.size)


def _own_file(context: MachineContext, disk: Disk) -> Path:
    return context.home.disk(context.id, disk.serial)


def _prepare(context: MachineContext, record: Record) -> None:
    """Put right what a command left that was killed."""
    if record.state.live:
        plug_missing(context)
    else:
        settle_disks(context)


def _unplug(
    context: MachineContext, record: Record, slot: int, timeout: float, *, force: bool
) -> None:
    if record.state is State.PAUSED and not force:
        raise StateError(
            f"{record.name} is paused, and a paused guest releases no device",
            hint=f"resume it first: cerne resume {record.name}",
            machine=record.name,
        )
    if record.state.live:
        unplug(context, record, slot, timeout, force=force)


def _change(context: MachineContext, spec: MachineSpec, detail: str) -> None:
    claim = claim_with_disks(context, spec)
    context.store.change_spec(context.last, spec.model_dump_json(), detail, claim)
    context.last = context.store.get(context.id)


def _find_disk(spec: MachineSpec, which: str) -> Disk:
    for disk in spec.data_disks:
        if which in (disk.serial, str(disk.number)):
            return disk
    raise NotFoundError(
        f"{spec.name} has no removable disk {which}",
        hint=f"see: cerne disk ls {spec.name}",
    )
