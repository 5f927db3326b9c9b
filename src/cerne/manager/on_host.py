"""What a specification names on this host: directories to mount, and files that are disks.

A path is made whole and looked at once, when a machine or a disk is made: by then it is known where
the person stands who wrote it, and what its file looks like before a guest writes to it.
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cerne.errors import InputError
from cerne.units import format_size

if TYPE_CHECKING:
    from cerne.images import Image
    from cerne.spec.disk import Disk
    from cerne.spec.machine import MachineSpec
    from cerne.spec.mount import Mount


def found_spec(spec: MachineSpec) -> MachineSpec:
    """The specification with whole paths, and with the format of each file that is a disk.

    Raises:
        InputError: a path to mount is not a directory.
        NotFoundError, ImageError: there is no such file, or it is not usable as a disk.
    """
    mounts = tuple(_found_mount(mount) for mount in spec.mounts)
    disks = tuple(found_disk(disk) for disk in spec.disks)
    return spec.changed(mounts=mounts, disks=disks)


def found_disk(disk: Disk) -> Disk:
    """The disk with a whole path, and with the format of its file; one of its own as it is.

    Raises:
        NotFoundError, ImageError: there is no such file, or it is not usable as a disk.
    """
    if disk.path is None:
        return disk
    from cerne.storage.formats import data_disk_format

    path = _whole(disk.path)
    found = data_disk_format(path, disk.format)
    if not disk.read_only and not os.access(path, os.W_OK):
        raise InputError(
            f"you may not write to the disk {path}",
            hint=f"attach it for reading only: {path}:ro; or become its owner: ls -l {path}",
        )
    return disk.model_copy(update={"path": path, "format": found})


def check_image(spec: MachineSpec, image: Image) -> None:
    """Refuse what a machine of this image cannot have.

    Raises:
        InputError: it has too little memory for it, or a disk that the image does not allow.
    """
    if spec.memory < image.least_memory:
        least = format_size(image.least_memory)
        raise InputError(
            f"{spec.image} does not boot in {format_size(spec.memory)} of memory",
            hint=f"ask for at least --memory {least}",
        )
    if spec.root_size is None:
        return
    if image.disk is None:
        raise InputError(
            f"{spec.image} has no disk: it runs from memory",
            hint="leave --disk out, or use an image with a disk, such as debian:12",
        )
    if spec.root_size < image.disk.virtual_size:
        raise InputError(
            f"a disk of {format_size(spec.root_size)} is smaller than the image's"
            f" {format_size(image.disk.virtual_size)}",
            hint=f"ask for at least --disk {format_size(image.disk.virtual_size)}",
        )


def _found_mount(mount: Mount) -> Mount:
    whole = mount.model_copy(update={"source": _whole(mount.source)})
    _require_directory(whole)
    return whole


def _whole(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise InputError(
            f"{path} has the home of a user that this host does not have",
            hint="write the whole path",
        ) from error


def _require_directory(mount: Mount) -> None:
    if not mount.source.exists():
        raise InputError(
            f"the mount's directory {mount.source} does not exist",
            hint=f"make it first: mkdir -p {quote(str(mount.source))}",
        )
    if not mount.source.is_dir():
        raise InputError(
            f"the mount's source {mount.source} is not a directory",
            hint="mount the directory that it is in, or copy it: cerne cp"
            f" {quote(str(mount.source))} NAME:{mount.target}",
        )
    if not os.access(mount.source, os.R_OK | os.X_OK):
        raise InputError(
            f"you may not read the directory {mount.source}, which is to be mounted",
            hint=f"mount another one, or see: ls -ld {quote(str(mount.source))}",
        )
