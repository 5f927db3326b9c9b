"""A disk made of a file and the backing files under it."""

from __future__ import annotations

from collections.abc import Sequence

from cerne.devices.block.disk import Disk
from cerne.devices.block.qcow2 import Qcow2Disk
from cerne.devices.block.raw import RawDisk
from cerne.errors import ImageError


def open_chain(files: Sequence[tuple[int, str]], *, read_only: bool) -> Disk:
    """Open a disk of files, the top first, each a descriptor (which it takes over) and a format.

    Only the top file is written.

    Raises:
        ImageError: a file does not have its format, is damaged, or has an unknown format.
    """
    disk: Disk | None = None
    for depth, (descriptor, form) in reversed(list(enumerate(files))):
        if form == "qcow2":
            disk = Qcow2Disk(descriptor, disk, read_only=read_only or depth > 0)
        elif form == "raw" and disk is None:
            disk = RawDisk(descriptor)
        else:
            raise ImageError(
                f"the disk has the format {form}, which the native engine does not read"
            )
    if disk is None:
        raise ImageError("a disk needs at least one file, and has none")
    return disk
