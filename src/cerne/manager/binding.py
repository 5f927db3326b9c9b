"""Machines that are bound to a process, such as ``cerne run --rm``: they end with it.

The process is recorded with the machine, and each command that lists or starts machines removes
those whose process has ended (`ManagerContext.sweep_abandoned`). So that memory is not held until
then, a watcher of its own waits for the end of the process too.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cerne.errors import HostError
from cerne.host.process import ProcessIdentity
from cerne.manager.background import work_arguments

if TYPE_CHECKING:
    from cerne.manager.home import Home

# It imports nothing of Cerne: it waits for as long as the machine lives, and is to be small.
_PROGRAM = """
import os, select, sys
select.select([int(sys.argv[1])], [], [])
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def this_process() -> ProcessIdentity:
    """The process that a machine is bound to which is started here.

    Raises:
        HostError: /proc does not tell it.
    """
    identity = ProcessIdentity.of(os.getpid())
    if identity is None:
        raise HostError("this process is not in /proc", hint="mount it: mount -t proc proc /proc")
    return identity


@contextlib.contextmanager
def watched(home: Home, machine_id: str) -> Iterator[None]:
    """Remove a machine if this process ends in this block, for any reason.

    Raises:
        HostError: no process can be started.
    """
    watcher = _watcher(home, machine_id)
    owner = os.getpid()
    try:
        yield
    finally:
        # A child that was forked in the block may leave it too, and the watcher is not the child's.
        if os.getpid() == owner:
            watcher.kill()
            watcher.wait()


def _watcher(home: Home, machine_id: str) -> subprocess.Popen[bytes]:
    descriptor = os.pidfd_open(os.getpid())
    removal = work_arguments(home, "remove", machine_id)
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(descriptor), *removal],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[descriptor],
            # What ends this process by its group or its terminal must not end the watcher.
            start_new_session=True,
        )
    except OSError as error:
        raise HostError(f"running {sys.executable} failed: {error.strerror}") from error
    finally:
        os.close(descriptor)
