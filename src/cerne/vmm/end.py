"""How a machine ended, as its process reports it."""

from __future__ import annotations

from typing import NamedTuple

PANICKED = "the guest's kernel panicked"
"""The reason if the guest's kernel reported its panic."""


class End(NamedTuple):
    """The end of one machine."""

    orderly: bool
    """Whether the guest or the host asked for the end."""
    reason: str
