"""The disks of a machine: its root disk, and those that are attached and detached.

A disk's text is ``SIZE`` or ``PATH[:ro][:format=raw|qcow2]``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from cerne.errors import DamagedError, InputError
from cerne.spec.limits import LARGEST_DISK, ROOT_SERIAL, SERIAL, SLOTS, SMALLEST_DISK
from cerne.spec.part import Bytes, Device, require_size, require_whole_mib
from cerne.units import parse_size

_OPTION = re.compile(r"(?P<rest>.+):(?:(?P<ro>ro)|format=(?P<format>[^:/]+))", re.DOTALL)
_SERIAL = re.compile(SERIAL, re.ASCII)
_SIZE = "the size of a disk"

DiskFormat = Literal["raw", "qcow2"]
"""The format of a disk in its file."""


class Disk(Device):
    """A disk of a machine."""

    serial: str
    """The guest's name for it (``/sys/block/vd?/serial``, ``/dev/disk/by-id/virtio-SERIAL``).

    ``root`` is the disk of the image; it is in the list only to set its size.
    """
    size: Bytes | None = None
    """Bytes of a disk that is made for the machine; None for a disk with a `path`."""
    path: Path | None = None
    """A file or a device of the host, which the machine uses directly."""
    format: DiskFormat | None = None
    """The detected format of the file at `path`; None if it is not detected yet, and for `size`."""
    read_only: bool = False

    @property
    def is_root(self) -> bool:
        """Whether it is the disk of the image."""
        return self.serial == ROOT_SERIAL

    @property
    def own(self) -> bool:
        """Whether it belongs to the machine, and is copied and removed with the machine."""
        return self.path is None

    @property
    def read_as(self) -> DiskFormat:
        """The format for reading and writing it.

        Raises:
            DamagedError: the file's format is not detected yet.
        """
        if self.own:
            return "qcow2"
        if self.format is None:
            raise DamagedError(f"the format of the disk {self.path} is unknown")
        return self.format

    @classmethod
    def parse(cls, text: str, serial: str, slot: int, *, read_only: bool = False) -> Self:
        """Parse a disk from ``SIZE`` or ``PATH[:ro][:format=FORMAT]``.

        Raises:
            InputError: there is no such disk or format.
        """
        size = None
        with suppress(InputError):
            size = parse_size(text)
        if size is not None:
            return cls(serial=serial, slot=slot, size=size, read_only=read_only)
        named = None
        while match := _OPTION.fullmatch(text):
            text = match["rest"]
            named = match["format"] or named
            read_only = read_only or match["ro"] is not None
        return cls(
            serial=serial, slot=slot, path=Path(text), format=_format(named), read_only=read_only
        )

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        _check_serial(self.serial)
        if (self.size is None) == (self.path is None):
            raise InputError(
                f"the disk {self.serial} needs a size or a path, and not both",
                hint="give a size for a new and empty disk, or the path of a file of the host",
            )
        if self.own and self.format is not None:
            raise InputError(
                f"the new disk {self.serial} has a format already",
                hint="leave its format out: Cerne makes disks of a machine's own in qcow2",
            )
        if self.size is not None:
            require_size(_SIZE, self.size, SMALLEST_DISK, LARGEST_DISK)
        if self.is_root:
            self._check_root()
        elif self.slot is None:
            raise InputError(
                f"the disk {self.serial} has no slot", hint=f"give one of 0 to {SLOTS - 1}"
            )
        elif self.size is not None:
            require_whole_mib(_SIZE, self.size)
        return self

    def _check_root(self) -> None:
        if self.slot is not None or self.path is not None or self.read_only:
            raise InputError(
                f"{ROOT_SERIAL!r} is the serial of the root disk, which has only a size",
                hint="give another disk another serial",
            )


def free_serial(disks: Sequence[Disk]) -> str:
    """A serial that none of these disks has."""
    taken = {disk.serial for disk in disks}
    return next(name for number in count(1) if (name := f"data{number}") not in taken)


def _check_serial(serial: str) -> None:
    if not _SERIAL.fullmatch(serial):
        raise InputError(
            f"{serial[:40]!r} is not a serial for a disk",
            hint="take up to 20 letters, digits, dots, dashes and underscores",
        )


def _format(named: str | None) -> DiskFormat | None:
    match named:
        case None | "raw" | "qcow2":
            return named
    raise InputError(
        f"{named!r} is not a format of a machine's disk",
        hint="write format=raw or format=qcow2, or leave it out: Cerne looks at the file",
    )
