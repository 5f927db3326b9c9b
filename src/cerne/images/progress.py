"""How a long operation reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the present step, the amount that is done, and the whole amount if known."""

    def __call__(self, what: str, done: int, total: int | None) -> None: ...


def silent(what: str, done: int, total: int | None) -> None:
    """Report nothing."""
