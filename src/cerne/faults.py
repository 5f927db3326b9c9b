"""Where an operation may be killed: tests step through these places, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable


def _nothing(_name: str) -> None:
    pass


hook: Callable[[str], None] = _nothing
"""What is called at each step; a test puts a function here that ends the process."""


def step(name: str) -> None:
    """Come to the step of this name."""
    hook(name)
