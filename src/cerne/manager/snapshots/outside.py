"""The gate for what comes from outside this store: specifications, images and disks in an archive.

Whatever passes is checked by its model (`MachineSpec`, `Manifest`, `archive.Index`), names nothing
of this host, and its disks refer to no other file (`cerne.storage.formats`). An import of any kind
goes through here before a file of it comes to where the store's files are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cerne.errors import ImageError, InputError
from cerne.images.importing import LARGEST_DISK, require_whole
from cerne.spec.names import check_name
from cerne.spec.network import NetworkKind, parse_network
from cerne.spec.resources import Resources
from cerne.storage.formats import require_self_contained
from cerne.units import counted, format_size

if TYPE_CHECKING:
    from pathlib import Path

    from cerne.manager.snapshots.manifest import Manifest
    from cerne.spec.machine import MachineSpec

OF_A_HOST = frozenset((NetworkKind.TAP, NetworkKind.NAMED))
"""Kinds of networks that are another thing on another host."""

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}")
"""A name or a digest of an image: it is shown, and looked for."""

_ROOM_BESIDE_MEMORY = 1 << 30
"""Bytes that an engine's own state may take beside the guest's memory."""


def strange_manifest(manifest: Manifest, what: str) -> Manifest:
    """The manifest of a snapshot that comes from outside, which is of no machine of this store.

    Raises:
        InputError: it is of a machine that has what an archive does not hold, or no other host has.
    """
    check_name(manifest.spec.name)
    for image in (manifest.image, manifest.spec.image):
        if not _IMAGE.fullmatch(image):
            raise InputError(
                f"{what} belongs to an image with the name {image[:40]!r}, which is not valid",
                hint="if you trust it, export the snapshot again",
            )
    require_nothing_of_a_host(manifest.spec, what)
    if manifest.data_layers:
        raise InputError(
            f"{what} names disks that an archive does not contain",
            hint="export the snapshot again",
        )
    # Ports are its new machine's own, and are asked for when that is made; access to this host
    # was given on another one.
    nics = [nic.model_copy(update={"host_access": ()}) for nic in manifest.spec.copied().nics]
    changed = {"nics": tuple(nics), "resources": _limits(manifest.spec.resources)}
    spec = manifest.spec.copied().model_copy(update=changed)
    return manifest.model_copy(update={"machine": "", "spec": spec})


def _limits(resources: Resources) -> Resources:
    """The limits alone: this host has promised nothing, and merges pages with nobody's unasked."""
    kept = {
        "cpu": {"limit": resources.cpu.limit},
        "memory": {"limit": resources.memory.limit, "swap": resources.memory.swap},
        "disk": {"iops": resources.disk.iops, "rate": resources.disk.rate},
        "network": resources.network,
        "pids": resources.pids,
    }
    return Resources.model_validate(kept)


def require_nothing_of_a_host(spec: MachineSpec, what: str) -> None:
    """Refuse a machine with disks, directories, second taps or second networks of one host.

    The command that makes a machine of it names the tap or the network of its first card.

    Raises:
        InputError: it has such.
    """
    if spec.data_disks:
        raise InputError(
            f"the machine of {what} has disks in addition to its root disk, which an archive"
            " does not contain",
            hint="detach them before the snapshot: cerne disk detach",
        )
    if spec.mounts:
        raise InputError(
            f"the machine of {what} has mounted directories of its host, which another host"
            " does not have",
            hint="make the machine without --mount, and copy the files into it: cerne cp",
        )
    if any(parse_network(nic.network).kind in OF_A_HOST for nic in spec.added_nics):
        raise InputError(
            f"the machine of {what} has a second network card on a tap or a network of its host",
            hint="detach it before the snapshot: cerne nic detach",
        )


def require_strange_disk(path: Path, disk_format: str, size: int, what: str) -> None:
    """Refuse an image's disk that is not what is said of it, or that refers to another file.

    A raw disk may hold anything: it is never looked into for a format.

    Raises:
        ImageError: it is such a disk, or its tables are damaged.
    """
    with _told_of(path, f"{what} is not usable", "its image's disk"):
        if not 0 < size <= LARGEST_DISK:
            raise ImageError(
                f"{path} has {format_size(size)}; the most are {format_size(LARGEST_DISK)}"
            )
        _require_disk(path, disk_format, size)


def require_strange_layer(path: Path, size: int, what: str) -> None:
    """Refuse what a machine's disk differs in from its image's, as `require_strange_disk` does.

    Raises:
        ImageError: it is none, or not of this many bytes.
    """
    with _told_of(path, f"{what} is not usable", "it"):
        _require_disk(path, "qcow2", size)


@contextmanager
def _told_of(path: Path, what: str, name: str) -> Iterator[None]:
    """An error names a file that has just been made here by what it is."""
    try:
        yield
    except ImageError as error:
        raise ImageError(
            f"{what}: {error.message.replace(str(path), name)}",
            hint="if you trust it, export the snapshot again",
        ) from error


def _require_disk(path: Path, disk_format: str, size: int) -> None:
    if disk_format == "raw":
        found, virtual_size = "raw", path.stat().st_size
    else:
        recognised = require_self_contained(path)
        found, virtual_size = recognised.format, recognised.virtual_size or 0
    if (found, virtual_size) != (disk_format, size):
        raise ImageError(
            f"{path} is {found} of {counted(virtual_size, 'byte')}, and its index says"
            f" {disk_format} of {counted(size, 'byte')}"
        )
    require_whole(path, disk_format)


def require_plausible_memory(held: int, memory: int) -> None:
    """Refuse saved memory that is larger than what was saved can be.

    Raises:
        ImageError: it is.
    """
    if held > memory + _ROOM_BESIDE_MEMORY:
        raise ImageError(
            f"the saved memory has {format_size(held)}, and its machine has {format_size(memory)}",
            hint="export the snapshot again",
        )
