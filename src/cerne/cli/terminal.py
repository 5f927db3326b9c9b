"""The user's terminal: its raw mode, its size, and its keys until the session ends.

In raw mode (termios(3)) every key goes to the guest, also Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from cerne.cli.streams import read_some
from cerne.errors import InputError


def require_terminal(otherwise: str) -> None:
    """Refuse a terminal session if stdin is not a terminal; `otherwise` is the error's hint.

    Raises:
        InputError: stdin is not a terminal.
    """
    if not sys.stdin.isatty():
        raise InputError(
            "the session needs a terminal, and stdin is not a terminal", hint=otherwise
        )


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Put the terminal of stdin in raw mode for the block, and restore its mode afterwards."""
    descriptor = sys.stdin.fileno()
    saved = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def size() -> tuple[int, int]:
    """Rows and columns of the terminal of stdin."""
    found = os.get_terminal_size(sys.stdin.fileno())
    return found.lines, found.columns


@contextlib.contextmanager
def on_resize(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Call `tell` with rows and columns whenever the terminal's size changes."""

    def changed(_signal: int, _frame: FrameType | None) -> None:
        tell(*size())

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def read_input(stop: int) -> bytes:
    """The next bytes of stdin; empty at its end, or when the descriptor `stop` is readable.

    Raises:
        StreamError: stdin fails.
    """
    descriptor = sys.stdin.fileno()
    readable, _, _ = select.select([descriptor, stop], [], [])
    if stop in readable:
        return b""
    return read_some(descriptor)
