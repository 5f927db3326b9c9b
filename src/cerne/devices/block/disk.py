"""The interface of a disk for a block device. A refusal of the host is an OSError."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Disk(Protocol):
    """A disk of `size` bytes. Ranges are inside of it, and may begin and end at any byte."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Fill the views, one after the other, with the data from `offset` on."""

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write the views, one after the other, from `offset` on."""

    def flush(self) -> None:
        """Return when everything written before is on the medium."""

    def discard(self, offset: int, length: int) -> None:
        """Discard a range: it may read as its former data or as zeros."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Zero a range; `unmap` frees its space."""

    def close(self) -> None:
        """Close the disk and its files in order."""
