"""The interrupt line of a device, which it raises and lowers."""

from __future__ import annotations

from typing import Protocol


class InterruptLine(Protocol):
    """A line to an interrupt controller. Setting it twice to one level is harmless."""

    def set(self, level: bool) -> None:
        """Raise or lower the line."""
