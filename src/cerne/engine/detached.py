"""Starting a machine's process so that it survives the command that started it.

The process is given a session of its own, no terminal, no environment beyond the locale, and no
open file but those that are named here.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.plan import LaunchPlan
from cerne.errors import EngineError, StorageError
from cerne.host.logs import last_line
from cerne.host.members import Members, start_member
from cerne.host.process import ProcessIdentity

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

_START_TIMEOUT = 60.0
_log = logging.getLogger(__name__)

# Children of this process, kept until they have ended, so that none stays behind as a zombie in a
# program that starts many machines.
_children: list[subprocess.Popen[bytes]] = []


def spawn(
    argv: Sequence[str], log: Path, descriptors: Sequence[int], runtime: Path, role: str
) -> int:
    """Start a detached process that writes to `log` and inherits `descriptors`; its pid.

    It is registered in the machine's runtime directory before it runs (`cerne.host.members`).

    Raises:
        EngineError: the program cannot be run.
        StorageError: the log cannot be written.
    """
    reap()
    _log.debug("starting %s", shlex.join(argv))
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise StorageError(f"{log} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as output:
        try:
            child = start_member(Members(runtime), role, argv, descriptors, output.fileno())
        except OSError as error:
            raise EngineError(f"{argv[0]} cannot be run: {error.strerror}") from error
    _children.append(child)
    return child.pid


def answering(
    pid: int, plan: LaunchPlan, what: str, prepare: Callable[[QmpClient], None] | None = None
) -> ProcessIdentity:
    """The process's identity, once its QMP answers and its vCPUs run; or else it is killed.

    `prepare` does, by QMP, what they wait for before they run.

    Raises:
        EngineError: it did not start the machine; the message says why, as far as it is known.
    """
    # Imported only now: the machine starts meanwhile.
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
    """Kill a process, if there is one, and wait until it is gone."""
    if process is not None:
        process.send(signal.SIGKILL)
        process.wait()
    reap()


def reap() -> None:
    """Take leave of the processes started here that have ended."""
    _children[:] = [child for child in _children if child.poll() is None]


def listening_socket(path: Path) -> socket.socket:
    """A Unix socket that listens at `path`, for the process to inherit.

    Made before the process is, it can be connected to at once; and the connection breaks when the
    process dies, so that nobody need poll for either.

    Raises:
        EngineError: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise EngineError(f"{path} cannot be made: {error.strerror}") from error
    return listener
