"""Signals that end a command: it undoes its work, as after Ctrl-C, and exits with 128+n."""

from __future__ import annotations

import os
import signal
from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def end_at_once() -> None:
    """Make Ctrl-C end this process silently, while it only loads its modules.

    An exception would come out of an import, as a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def end_in_order() -> None:
    """Make Ctrl-C raise KeyboardInterrupt, and SIGTERM and SIGHUP SystemExit, in the main thread.

    A signal that this process was started to ignore, as by nohup, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in _ENDING:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _end(number: int, _frame: FrameType | None) -> None:
    # A closed terminal sends several signals; a second one must not interrupt the cleanup.
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)
