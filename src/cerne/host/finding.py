"""A fact about this host, and what to do if it is a problem."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the doctor's report."""

    topic: str
    value: str
    good: bool | None = None
    """False for a problem that stops machines or slows them; None for a neutral fact."""
    advice: str = ""
    """What to do, or an empty string."""


def read_text(path: Path) -> str:
    """The stripped text of a small file of /proc or /sys; empty if it is missing or unreadable."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
