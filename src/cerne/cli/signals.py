"""Signals that end a command: it undoes what it began, as after Ctrl-C, and exits with 128+n."""

from __future__ import annotations

import signal
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """Have SIGTERM and SIGHUP raise SystemExit in the main thread.

    One that this process was started to ignore, as nohup has it, is left so.
    """
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _end(number: int, _frame: FrameType | None) -> None:
    # A closed terminal sends more than one, and a second must not break off the undoing.
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
