"""A disk made of a file and the backing files under it."""

from __future__ import annotations

from collections.abc import Sequence

from cerne.devices.block.disk import Disk
from cerne.devices.block.raw import RawDisk
from cerne.errors import InputError


def open_chain(files: Sequence[tuple[int, str]], *, read_only: bool) -> Disk:
    """A disk of files, the top first, each a descriptor (which stays the caller's) and a format.

    Raises:
        InputError: a format is not known.
    """
    (descriptor, form), *rest = files
    if form != "raw" or rest:
        raise InputError(f"a disk of format {form} cannot be used", hint="use --engine qemu")
    return RawDisk(descriptor)
