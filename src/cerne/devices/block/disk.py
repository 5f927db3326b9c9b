"""What a block device needs of a disk. Whatever the host refuses is an OSError."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Disk(Protocol):
    """A disk of `size` bytes. Ranges lie within it, and may begin and end anywhere."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views, one after the other, with what is from `offset` on."""

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views, one after the other, from `offset` on."""

    def flush(self) -> None:
        """Return when everything written before is on the medium."""

    def discard(self, offset: int, length: int) -> None:
        """Forget a range: it may read as anything it was, or as zeros."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Let a range read as zeros; with `unmap` its space is given back."""

    def close(self) -> None:
        """End the use of the disk in order, and close its files."""
