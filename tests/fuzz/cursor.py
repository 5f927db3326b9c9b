"""Choices read from bytes, so that a fuzzer's bytes become what a guest or a file does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Cursor:
    """Reads bytes from the front; zeros once they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return max(0, len(self._data) - self._at)

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, size: int) -> int:
        """A little-endian number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def choice(self, options: Sequence[_T]) -> _T:
        """One of them, by one byte."""
        return options[self.number(1) % len(options)]

    def rest(self) -> bytes:
        """All that was not read yet."""
        return self.take(self.left)
