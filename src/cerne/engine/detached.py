"""Starts a machine's process so that it survives the command that started it.

The process gets a separate session, no terminal, no environment except the locale, and only the
open files that are named here.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.plan import LaunchPlan
from cerne.errors import EngineError, StorageError
from cerne.host.logs import last_line
from cerne.host.members import Members, start_member
from cerne.host.process import ProcessIdentity
from cerne.vmm import start

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

START = (sys.executable, "-I", "-S", start.__file__)
"""The program that starts a VMM, a fork server, or a program with walls around it."""

_START_TIMEOUT = 60.0
_log = logging.getLogger(__name__)

# Children of this process, kept until they have ended, so that none stays as a zombie in a program
# that starts many machines.
_children: list[subprocess.Popen[bytes]] = []


def spawn(
    argv: Sequence[str], log: Path, descriptors: Sequence[int], runtime: Path, role: str
) -> int:
    """Start a detached process that writes to `log` and inherits `descriptors`; return its pid.

    It is registered in the machine's runtime directory before it runs (`cerne.host.members`).

    Raises:
        EngineError: running the program failed.
        StorageError: the log is not writable.
    """
    reap()
    _log.debug("starting %s", shlex.join(argv))
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise StorageError(f"{log} is not writable: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as output:
        try:
            child = start_member(Members(runtime), role, argv, descriptors, output.fileno())
        except OSError as error:
            raise EngineError(f"running {argv[0]} failed: {error.strerror}") from error
    _children.append(child)
    return child.pid


def answering(
    pid: int, plan: LaunchPlan, what: str, prepare: Callable[[QmpClient], None] | None = None
) -> ProcessIdentity:
    """The process's identity, after its QMP answers and its vCPUs run; else it is killed.

    `prepare` prepares it by QMP before the vCPUs run.

    Raises:
        EngineError: it did not start the machine; the message has the reason, if it is known.
    """
    # Imported only now, because the machine starts meanwhile.
    from cerne.engine.qmp import QmpClient

    process = ProcessIdentity.of(pid)
    try:
        with QmpClient(plan.qmp_socket, _START_TIMEOUT, _START_TIMEOUT) as qmp:
            if prepare is not None:
                prepare(qmp)
            process = _running(pid, qmp.status())
    except EngineError as error:
        kill(process)
        cause = last_line(plan.engine_log) or error.message
        raise EngineError(
            f"{what} did not start {plan.name}: {cause}",
            hint=f"its log is {plan.engine_log}",
            machine=plan.name,
        ) from error
    except BaseException:
        kill(process)
        raise
    return process


def _running(pid: int, status: str) -> ProcessIdentity:
    process = ProcessIdentity.of(pid)
    if status != "running" or process is None:
        raise EngineError(f"it is {status}")
    return process


def kill(process: ProcessIdentity | None) -> None:
    """Kill a process, if there is one, and wait for its end."""
    if process is not None:
        process.send(signal.SIGKILL)
        process.wait()
    reap()


def reap() -> None:
    """Reap the processes started here that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]


def listening_socket(path: Path) -> socket.socket:
    """A Unix socket that listens at `path`, for the process to inherit.

    It is made before the process, so that a client can connect at once, and the connection breaks
    when the process ends, so that no client has to poll.

    Raises:
        EngineError: making it failed.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise EngineError(f"making {path} failed: {error.strerror}") from error
    return listener
