"""fallocate(2) with its modes, which Python's os module does not have."""

from __future__ import annotations

import ctypes
import os

KEEP_SIZE = 1
PUNCH_HOLE = 2
ZERO_RANGE = 16

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
_fallocate.restype = ctypes.c_int


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """Change how a range of a file is stored; raises OSError."""
    if _fallocate(descriptor, mode, offset, length) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
