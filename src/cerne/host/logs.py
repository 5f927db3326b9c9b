"""Reads the last line of a program's log."""

from __future__ import annotations

import os

# As in typing, whose import takes longer than this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

_LOOKED_AT = 65536


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, or an empty string."""
    try:
        file = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return last_line_of(file)
    finally:
        os.close(file)


def last_line_of(log: int) -> str:
    """The same of an open log."""
    try:
        data = os.pread(log, _LOOKED_AT, max(0, os.fstat(log).st_size - _LOOKED_AT))
    except OSError:
        return ""
    lines = data.decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
