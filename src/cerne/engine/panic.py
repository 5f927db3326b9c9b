"""Reads the message of a guest kernel's panic, from the log of its console."""

from __future__ import annotations

import re
from pathlib import Path

from cerne.engine.base import Ending
from cerne.vmm.end import PANICKED

_WORDS = re.compile(rb"Kernel panic - not syncing: ([^\r\n]*)")
_TAIL = 256 * 1024


def panicked(console_log: Path) -> Ending:
    """The ending of a machine whose kernel panicked, with the kernel's message if it is known."""
    words = last_words(console_log)
    return Ending(orderly=False, reason=f"{PANICKED}: {words}" if words else PANICKED)


def last_words(console_log: Path) -> str:
    """The message of a kernel's panic; empty if its console has none."""
    from cerne.guest.wire import readable

    found = _WORDS.findall(tail(console_log))
    return readable(found[-1]).strip() if found else ""


def tail(log: Path) -> bytes:
    """The end of a log; empty if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            return file.read()
    except FileNotFoundError:
        return b""
