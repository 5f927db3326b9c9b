"""Writes a cpio archive in the "newc" format, as the kernel unpacks an initramfs.

This code replaces cpio(1), so that device nodes and owners need no root, and equal content makes an
equal archive. Format: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath
from typing import BinaryIO

_HEADER = "070701" + "{:08X}" * 13
_TRAILER = "TRAILER!!!"
_LARGEST = 0xFFFFFFFF


class CpioWriter:
    """Writes entries to a file, directories before their content; all entries belong to root."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._count = 0
        self._directories = {PurePosixPath(".")}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory, and its parents that are missing."""
        place = _inside(path)
        if place in self._directories:
            return
        self.directory(str(place.parent))
        self._directories.add(place)
        self._entry(place, stat.S_IFDIR | mode, b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        self._add(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def close(self) -> None:
        """Write the archive's end; the file itself stays open."""
        self._entry(PurePosixPath(_TRAILER), 0, b"")

    def _add(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        place = _inside(path)
        self.directory(str(place.parent))
        self._entry(place, mode, content, device)

    def _entry(
        self, path: PurePosixPath, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
    ) -> None:
        if len(content) > _LARGEST:
            raise ValueError(f"{path} is too large for a cpio archive")
        name = str(path).encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self._count, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
        self._count += 1
        self._padded(_HEADER.format(*fields).encode() + name)
        self._padded(content)

    def _padded(self, data: bytes) -> None:
        self._file.write(data + bytes(-len(data) % 4))


def _inside(path: str) -> PurePosixPath:
    place = PurePosixPath(path)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{path} is not a path inside of the archive")
    return place
