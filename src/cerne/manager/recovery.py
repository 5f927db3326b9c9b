"""What a command finds after another one was killed, or after the host restarted.

A process is found by the machine's runtime directory, which stands in its command line, so that
even one whose pid was never written down is not lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.host.cgroup import MachineGroup
from cerne.host.process import ProcessIdentity

if TYPE_CHECKING:
    from cerne.manager.home import Home


def strays(runtime: Path) -> list[ProcessIdentity]:
    """The processes that name a machine's runtime directory."""
    marker = os.fsencode(runtime)
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if marker in (entry / "cmdline").read_bytes():
                process = ProcessIdentity.of(int(entry.name))
                found += [process] if process is not None else []
    return found


def kill_strays(runtime: Path) -> None:
    """Kill whatever process names a machine's runtime directory, and wait until it is gone."""
    for process in strays(runtime):
        process.send(signal.SIGKILL)
        process.wait()


def discard_runtime(home: Home, machine_id: str) -> None:
    """Remove what a machine had of the host while it ran; it has no process any more."""
    MachineGroup(machine_id, home.machine_group(machine_id)).remove()
    discard(home.machine_runtime(machine_id))


def discard(directory: Path) -> None:
    """Remove a directory and all in it; nothing happens where there is none."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
