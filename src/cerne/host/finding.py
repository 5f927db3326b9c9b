"""One thing that was found out about this host, and what mends it where it could be better."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the doctor's report."""

    topic: str
    value: str
    good: bool | None = None
    """False for what hinders machines or makes them slow; None for what is merely so."""
    advice: str = ""
    """What to do, or an empty string."""


def read_text(path: Path) -> str:
    """A small file of /proc or /sys, stripped; empty where it is not there or not readable."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
