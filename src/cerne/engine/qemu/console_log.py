"""Limits the size of the console log that QEMU writes, because a guest may write without end.

QEMU has no limit for a chardev's log. It appends to the file, so that another process may cut it:
here a shell, which takes a megabyte of memory and looks every few seconds. It ends with QEMU, which
has the other end of its pipe.
"""

from __future__ import annotations

from pathlib import Path

from cerne.vmm.console_log import LARGEST_LOG

ROLE = "console-log"
_INTERVAL = 5
"""Seconds between two looks."""

_SCRIPT = (
    'until timeout "$1" cat "/dev/fd/$2"; do'
    ' if [ "$(wc -c <"$0")" -gt "$3" ]; then : >"$0"; fi;'
    " done"
)


def limiting_command(
    log: Path, pipe: int, interval: float = _INTERVAL, most: int = LARGEST_LOG
) -> list[str]:
    """The command that limits a log until the other ends of the pipe are closed."""
    return ["/bin/sh", "-c", _SCRIPT, str(log), str(interval), str(pipe), str(most)]
