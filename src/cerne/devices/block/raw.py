"""A raw disk: a file, or a block device of the host, with the bytes of the disk.

preadv(2) and pwritev(2) move data between the file and the caller's views without a copy.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence

from cerne.devices.virtio.buffers import split
from cerne.kvm.fallocate import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate

_MOST_VIEWS = 1024
"""The most buffers of one call (IOV_MAX)."""
_ZEROES = bytes(1 << 20)


class RawDisk:
    """The file behind a descriptor, which it takes over."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.lseek(descriptor, 0, os.SEEK_END)

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views from `offset` on."""
        self._transfer(os.preadv, offset, views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views from `offset` on."""
        self._transfer(os.pwritev, offset, views)

    def flush(self) -> None:
        """Return when what was written is on the medium."""
        os.fdatasync(self._descriptor)

    def discard(self, offset: int, length: int) -> None:
        """Free a range's space; it reads as zeros."""
        fallocate(self._descriptor, PUNCH_HOLE | KEEP_SIZE, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Zero a range."""
        mode = PUNCH_HOLE if unmap else ZERO_RANGE
        try:
            fallocate(self._descriptor, mode | KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._fill_with_zeroes(offset, length)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _fill_with_zeroes(self, offset: int, length: int) -> None:
        zeroes = memoryview(_ZEROES)
        for start in range(0, length, len(_ZEROES)):
            self.write(offset + start, [zeroes[: length - start]])

    def _transfer(
        self,
        move: Callable[[int, Sequence[memoryview], int], int],
        offset: int,
        views: Sequence[memoryview],
    ) -> None:
        while views:
            moved = move(self._descriptor, views[:_MOST_VIEWS], offset)
            if moved == 0:
                raise OSError(errno.EIO, "the file is shorter than it was")
            offset += moved
            views = split(views, moved)[1]
