"""Reads the last line of a program's log."""

from __future__ import annotations

from pathlib import Path

_LOOKED_AT = 65536


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, or an empty string."""
    try:
        lines = log.read_bytes()[-_LOOKED_AT:].decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
