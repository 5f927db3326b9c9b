"""How a machine ended, as its process says it."""

from __future__ import annotations

from typing import NamedTuple

PANICKED = "the guest's kernel panicked"
"""The reason where the guest's kernel said so itself."""


class End(NamedTuple):
    """The end of one machine."""

    orderly: bool
    """Whether the guest or the host asked for it."""
    reason: str
