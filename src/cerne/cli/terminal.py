"""The user's terminal: raw mode, its size, and reading keys until something else ends the session.

Raw mode as in termios(3): every key goes to the guest, Ctrl-C too.
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
    """Refuse a terminal session where there is no terminal; `otherwise` says what to do instead.

    Raises:
        InputError: stdin is no terminal.
    """
    if not sys.stdin.isatty():
        raise InputError(
            "a terminal session was asked for, but stdin is no terminal", hint=otherwise
        )


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Put the terminal of stdin in raw mode, and back at the end, whatever happens."""
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
