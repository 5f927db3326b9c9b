"""Work that nobody waits for: a command of Cerne's own, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_LOW_PRIORITY = 10


def run_later(words: Sequence[str], log: Path) -> None:
    """Run a command line of ``cerne`` in the background; what it says goes to the end of a log."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "cerne", *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    os.setpriority(os.PRIO_PROCESS, child.pid, _LOW_PRIORITY)
