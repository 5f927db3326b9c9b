"""Signals that end a command: it undoes what it began, as after Ctrl-C, and exits with 128+n."""

from __future__ import annotations

import os
import signal
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_at_once() -> None:
    """Have Ctrl-C end this process without a word, while it has begun nothing but to load itself.

    An exception would come out of the midst of an import, as a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def end_in_order() -> None:
    """Have Ctrl-C raise KeyboardInterrupt, and SIGTERM and SIGHUP SystemExit, in the main thread.

    One that this process was started to ignore, as nohup has it, is left so.
    """
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _end(number: int, _frame: FrameType | None) -> None:
    # A closed terminal sends more than one, and a second must not break off the undoing.
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
