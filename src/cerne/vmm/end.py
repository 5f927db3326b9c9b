"""How a machine ended, as its process says it."""

from __future__ import annotations

from dataclasses import dataclass

PANICKED = "the guest's kernel panicked"
"""The reason where the guest's kernel said so itself."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of one machine."""

    orderly: bool
    """Whether the guest or the host asked for it."""
    reason: str
