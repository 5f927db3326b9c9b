"""The files of one machine's disks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path

from cerne import faults
from cerne.errors import DamagedError
from cerne.images.files import sync_directory
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext
from cerne.spec.limits import ROOT_SERIAL

MADE = ".made"
"""What the name of a disk ends in that was made for a machine which does not have it yet."""


def own_disks(context: MachineContext) -> dict[str, Path]:
    """The disks that are its alone, by their serials; not those that the host has elsewhere."""
    root = context.home.root_disk(context.id)
    disks = {ROOT_SERIAL: root} if root.exists() else {}
    own = [disk.serial for disk in context.spec.data_disks if disk.own]
    return disks | {serial: context.home.disk(context.id, serial) for serial in own}


def freeze(context: MachineContext) -> dict[str, Path]:
    """Freeze its own disks as they are (`Layers.freeze`); the layers by the disks' serials.

    Raises:
        StorageError, StateError: freezing one failed; it is unchanged.
    """
    return context.layers.freeze(context.id, own_disks(context))


def lay(context: MachineContext, layers: Mapping[str, Path]) -> None:
    """Make its disks, each an empty overlay on a layer that the store has it refer to.

    Raises:
        StorageError: making one failed.
    """
    for serial, layer in layers.items():
        context.layers.overlay(layer, context.home.disk(context.id, serial))


def settle_disks(context: MachineContext) -> dict[str, Path]:
    """Put the files of its disks right, as its specification has them.

    What was made for a disk becomes it; and a disk that is not its any more is not removed
    but kept, in `Home.disks`. Where those are now, by their serials.
    """
    _grow_root(context)
    wanted = set(own_disks(context).values())
    for half_made in context.directory.glob("*.qcow2.new"):
        half_made.unlink()
    for made in context.directory.glob(f"data-*{MADE}"):
        disk = made.with_name(made.name.removesuffix(MADE))
        if disk in wanted and not disk.exists():
            made.rename(disk)
        else:
            made.unlink()
    kept = {}
    for disk in context.directory.glob("data-*.qcow2"):
        if disk not in wanted:
            serial = disk.stem.removeprefix("data-")
            kept[serial] = _keep_disk(context, disk, serial)
    return kept


def root_size(context: MachineContext) -> int:
    """Bytes of its root disk as it is now; 0 if it has none.

    Raises:
        DamagedError: it is unreadable.
    """
    from cerne.storage.overlay import virtual_size

    root = context.home.root_disk(context.id)
    return virtual_size(root, "qcow2") if root.exists() else 0


def _grow_root(context: MachineContext) -> None:
    """Grow its root disk to the size in its specification: the command may have been killed."""
    from cerne.storage.overlay import grow

    wanted = context.spec.root_size
    if wanted is not None and 0 < root_size(context) < wanted:
        grow(context.home.root_disk(context.id), wanted)
        faults.step("disk grown")


def release_disks(context: MachineContext) -> None:
    """Keep what is not its own any more, before it is removed.

    If its specification is unreadable, these are all disks beside its root disk.
    """
    try:
        settle_disks(context)
    except DamagedError:
        for disk in context.directory.glob("data-*.qcow2"):
            _keep_disk(context, disk, disk.stem.removeprefix("data-"))


def merge_layers(context: MachineContext) -> None:
    base = context.image().disk
    merged = False
    for serial, disk in own_disks(context).items():
        if serial != ROOT_SERIAL:
            merged |= context.layers.merge(disk, None, "")
        elif base is not None:
            merged |= context.layers.merge(disk, base.path, base.format)
    if merged:
        context.layers.settle(context.id)
        collect(context.manager)


def commit_disks(context: MachineContext) -> None:
    for disk in own_disks(context).values():
        context.layers.commit(disk)


def is_replaced(context: MachineContext) -> bool:
    return any(context.layers.is_replaced(disk) for disk in own_disks(context).values())


def _keep_disk(context: MachineContext, disk: Path, serial: str) -> Path:
    first = f"{context.last.name}-{serial}"
    names = chain([first], (f"{first}-{number}" for number in count(2)))
    targets = (context.home.disks / f"{name}.qcow2" for name in names)
    target = next(path for path in targets if _linked(disk, path))
    disk.unlink()
    sync_directory(target.parent)
    faults.step("disk kept")
    return target


def _linked(file: Path, target: Path) -> bool:
    """Give a file another name, unless another has it; whether it has that name now."""
    try:
        os.link(file, target)
    except FileExistsError:
        # A command that was killed may have come so far.
        return target.samefile(file)
    return True
