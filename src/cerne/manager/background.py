"""Work that no command waits for, done by `cerne.manager.worker` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from cerne.manager.home import Home

_LOW_PRIORITY = 10

Work = Literal["fill", "warm", "remove"]
"""Fill the pool of a name, make the template of a specification, remove the machine of an ID."""


def work_arguments(home: Home, work: Work, subject: str) -> list[str]:
    """The arguments of a Python that does this work."""
    # Another cerne in the working directory is not imported (-P).
    directories = (home.data, home.runtime, home.cache)
    return ["-P", "-m", "cerne.manager.worker", *map(str, directories), work, subject]


def run_later(home: Home, work: Work, subject: str, log: Path) -> None:
    """Do this work in the background; what is said of it goes to the end of a log."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, *work_arguments(home, work, subject)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
    os.setpriority(os.PRIO_PROCESS, child.pid, _LOW_PRIORITY)
