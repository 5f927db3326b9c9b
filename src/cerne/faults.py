"""Steps at which an operation may be killed; only tests use them."""

from __future__ import annotations

from collections.abc import Callable


def _nothing(_name: str) -> None:
    pass


hook: Callable[[str], None] = _nothing
"""The function that is called at each step; a test sets one that ends the process."""


def step(name: str) -> None:
    """Call the hook with the name of a step."""
    hook(name)
