"""Disks and network cards beside the first: added to a machine and taken from it, even as it runs.

What a machine has is what its specification says. A disk's file is made before it is named there,
and a device is in the machine's process only while it is: whoever is killed midway leaves a machine
whose next operation plugs in what is missing. A disk that is taken out is never removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import ConflictError, InputError, NotFoundError, StateError
from cerne.images.files import storage_errors
from cerne.manager.on_host import found_disk
from cerne.manager.plan import disk_plan, nic_plan
from cerne.manager.store import Record, State

if TYPE_CHECKING:
    from cerne.manager.home import Home
    from cerne.manager.life import Life
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
                f"{spec.name} writes to {disk.path}, which is no disk of its own: what goes on from"
                " its memory would write to it too",
                hint=f"take it out first: cerne disk detach {spec.name} {disk.serial}",
            )


def require_not_ours(home: Home, disks: Iterable[Disk]) -> None:
    """Refuse files that are Cerne's own as disks, by whatever name: a guest would write to them.

    Raises:
        ConflictError: there is such a file.
    """
    for disk in disks:
        if disk.path is None:
            continue
        real = disk.path.resolve()
        if _is_ours(home, real) or _is_linked(home, real):
            raise ConflictError(
                f"{disk.path} is a file of Cerne's own",
                hint="take a copy of it, or a disk that was detached: cerne disk detach",
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


def attach_disk(life: Life, what: str | Path, serial: str | None, *, read_only: bool) -> Disk:
    """Add a disk to a machine (see `Machine.attach_disk`)."""
    from cerne.spec.disk import Disk, free_serial

    with life.operation("attach") as record:
        life.require(record, *_ATTACHABLE)
        spec = life.spec
        chosen, slot = serial or free_serial(spec.disks), spec.free_slot
        if isinstance(what, Path):
            disk = Disk(serial=chosen, slot=slot, path=what, read_only=read_only)
        else:
            disk = Disk.parse(what, chosen, slot, read_only=read_only)
        disk = found_disk(disk)
        changed = spec.changed(disks=(*spec.disks, disk))
        require_not_ours(life.home, [disk])
        _prepare(life, record)
        with storage_errors(f"making a disk of {record.name}", life.directory):
            make_disk(life, disk)
            faults.step("disk made")
            _change(life, changed, f"disk {disk.serial} attached")
            life.settle_disks()
        faults.step("disk noted")
        if record.state.live:
            try:
                life.instance().plug(disk_plan(life.home, life.id, disk))
            except BaseException:
                _change(life, spec, f"disk {disk.serial} not attached")
                # It has never been used.
                _own_file(life, disk).unlink(missing_ok=True)
                raise
        faults.step("disk plugged")
    return disk


def detach_disk(life: Life, which: str, timeout: float, *, force: bool) -> Path:
    """Take a disk from a machine (see `Machine.detach_disk`)."""
    with life.operation("detach") as record:
        life.require(record, *_ATTACHABLE)
        spec = life.spec
        disk = _find_disk(spec, which)
        _unplug(life, record, disk.number - 1, timeout, force=force)
        faults.step("disk unplugged")
        left = tuple(each for each in spec.disks if each != disk)
        _change(life, spec.changed(disks=left), f"disk {disk.serial} detached")
        faults.step("disk forgotten")
        if disk.path is not None:
            return disk.path
        with storage_errors(f"keeping the disk {disk.serial}", life.home.disks):
            kept = life.settle_disks()[disk.serial]
            # It may go anywhere from now on, where its layers do not follow.
            life.layers.flatten(kept)
        life.layers.settle(life.id)
        life.surroundings.collect()
    return kept


def attach_nic(life: Life, network: str) -> Nic:
    """Add a network card to a machine (see `Machine.attach_nic`)."""
    from cerne.spec.nic import Nic

    with life.operation("attach") as record:
        life.require(record, *_ATTACHABLE)
        spec = life.spec
        nic = Nic(slot=spec.free_slot, network=network)
        changed = spec.changed(nics=(*spec.nics, nic))
        _prepare(life, record)
        _change(life, changed, f"nic {nic.number} attached")
        faults.step("nic noted")
        if record.state.live:
            try:
                life.instance().plug(nic_plan(life.id, nic))
            except BaseException:
                _change(life, spec, f"nic {nic.number} not attached")
                raise
    return nic


def detach_nic(life: Life, number: int, timeout: float, *, force: bool) -> None:
    """Take a network card from a machine (see `Machine.detach_nic`)."""
    with life.operation("detach") as record:
        life.require(record, *_ATTACHABLE)
        spec = life.spec
        # The first card, 0, stays.
        left = tuple(nic for nic in spec.nics if not number or nic.number != number)
        if len(left) == len(spec.nics):
            raise NotFoundError(
                f"{record.name} has no network card {number} that can be taken out",
                hint=f"see: cerne nic ls {record.name}",
            )
        _unplug(life, record, number - 1, timeout, force=force)
        faults.step("nic unplugged")
        _change(life, spec.changed(nics=left), f"nic {number} detached")


def make_disk(life: Life, disk: Disk) -> None:
    """Make the file of a disk that is a machine's own; it is named once `settle_disks` has run.

    Raises:
        StorageError: it cannot be made.
    """
    from cerne.manager.life import MADE
    from cerne.storage.overlay import create_empty

    if disk.size is not None:
        file = _own_file(life, disk)
        create_empty(file.with_name(file.name + MADE), disk.size)


def _own_file(life: Life, disk: Disk) -> Path:
    return life.home.disk(life.id, disk.serial)


def _prepare(life: Life, record: Record) -> None:
    """Put right what a command left that was killed."""
    if record.state.live:
        life.plug_missing()
    else:
        life.settle_disks()


def _unplug(life: Life, record: Record, slot: int, timeout: float, *, force: bool) -> None:
    if record.state is State.PAUSED and not force:
        raise StateError(
            f"{record.name} is paused, and its guest cannot let go of anything",
            hint=f"let it run first: cerne resume {record.name}",
            machine=record.name,
        )
    if record.state.live:
        life.instance(record).unplug(slot, timeout, force=force)


def _change(life: Life, spec: MachineSpec, detail: str) -> None:
    life.store.change_spec(life.last, spec.model_dump_json(), detail)
    life.last = life.store.get(life.id)


def _find_disk(spec: MachineSpec, which: str) -> Disk:
    for disk in spec.data_disks:
        if which in (disk.serial, str(disk.number)):
            return disk
    raise NotFoundError(
        f"{spec.name} has no disk {which} that can be taken out",
        hint=f"see: cerne disk ls {spec.name}",
    )
