"""How a device asks for attention: a line that it raises and lowers."""

from __future__ import annotations

from typing import Protocol


class InterruptLine(Protocol):
    """A wire to an interrupt controller. Setting it to what it is already is harmless."""

    def set(self, level: bool) -> None:
        """Raise or lower the line."""
