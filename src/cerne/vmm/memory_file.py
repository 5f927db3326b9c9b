"""The content of a file of saved memory, which has holes for its zeros, and its digest."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator

from cerne.errors import StorageError

PIECE = 2 << 20
"""Bytes that are read, and counted for the digest, at once."""
_NO_PIECE = bytes(PIECE)


def memory_digest(descriptor: int) -> str:
    """The digest of the file's present content, as `write_memory` computes it.

    Raises:
        StorageError: reading failed.
    """
    digest = hashlib.sha256(numbered(os.fstat(descriptor).st_size))
    for offset in pieces_with_data(descriptor):
        piece = os.pread(descriptor, PIECE, offset)
        if not is_zero(piece):
            digest.update(numbered(offset))
            digest.update(piece)
    return digest.hexdigest()


def pieces_with_data(descriptor: int, offset: int = 0, end: int | None = None) -> Iterator[int]:
    """The offsets of pieces of a file that are not all holes; pieces are aligned to `offset`."""
    size = os.fstat(descriptor).st_size if end is None else end
    first = offset
    while offset < size:
        try:
            found = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise StorageError(f"reading the saved memory failed: {error.strerror}") from error
        if found >= size:
            return
        piece = found - (found - first) % PIECE
        yield piece
        offset = piece + PIECE


def numbered(number: int) -> bytes:
    """A number in the digest."""
    return number.to_bytes(8, "little")


def is_zero(piece: bytes) -> bool:
    """Whether a piece has only zeros, which is not in the file."""
    return piece == (_NO_PIECE if len(piece) == PIECE else bytes(len(piece)))
