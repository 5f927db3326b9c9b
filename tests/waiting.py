"""How tests wait: for what they expect, and never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds after which a test gives up: far more than it needs on a host that does much else."""


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not true after {PATIENCE:.0f} s"
        time.sleep(0.02)
