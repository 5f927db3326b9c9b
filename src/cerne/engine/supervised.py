"""Starts the processes that serve devices of a machine, and that end with it.

Each has a supervisor (`cerne.engine.supervisor`) and a socket in the machine's runtime directory,
and writes to a log in the machine's directory of logs.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from cerne.engine.detached import spawn
from cerne.engine.opened import Opened, Report
from cerne.engine.plan import LaunchPlan
from cerne.engine.record import InstanceRecord
from cerne.engine.supervisor import GOOD, Task
from cerne.errors import EngineError
from cerne.host.members import supervisor_of
from cerne.vmm.config import BACKEND_SOCKET, BackendConfig

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_SEARCHED_BY_ALL = 0o711
_START_TIMEOUT = 30.0


def require_served(reports: Sequence[Report]) -> None:
    """Wait until all started processes serve.

    Raises:
        EngineError: a process does not; the message has its last output.
    """
    for what, report in reports:
        with report:
            if not select.select([report], [], [], _START_TIMEOUT)[0]:
                raise EngineError(f"{what} did not start within {_START_TIMEOUT:g} s")
            said = report.read()
        if said != GOOD:
            raise EngineError(said.decode(errors="replace") or f"{what} was killed")


def supervised(
    machine: LaunchPlan | InstanceRecord,
    name: str,
    what: str,
    listener: socket.socket,
    opened: Opened,
    command: Sequence[str],
    descriptors: Sequence[int] = (),
    report: int | None = None,
    mending: str = "",
) -> BackendConfig:
    """Start a backend with its supervisor, and connect to it.

    It listens itself; if it has a `report`, its supervisor listens.
    """
    path = backend_socket(machine, name)
    # The machine's process is another user when it connects again; the directory is in a private
    # one, and it is searched from a descriptor.
    path.chmod(0o666)
    with opened.pair() as (leash, supervisors_end):
        own = [] if report is None else [listener.fileno(), report]
        inherited = [*descriptors, *([listener.fileno()] if report is None else [])]
        task = Task(
            runtime=str(machine.runtime),
            role=name,
            what=what,
            log=str(backend_log(machine, name)),
            leash=supervisors_end,
            inherited=inherited,
            command=[*command],
            listener=None if report is None else listener.fileno(),
            report=report,
            mending=mending,
        )
        argv = [sys.executable, "-I", "-S", str(_SUPERVISOR), json.dumps(task._asdict())]
        files = [supervisors_end, *inherited, *own]
        spawn(argv, backend_log(machine, name), files, machine.runtime, supervisor_of(name))
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(path))
    except OSError as error:
        link.close()
        raise EngineError(f"connecting to {path} failed: {error.strerror}") from error
    return BackendConfig(
        link=opened.take(link.detach()),
        address=opened.take(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)),
        leash=leash,
    )


def backend_socket(machine: LaunchPlan | InstanceRecord, name: str) -> Path:
    directory = machine.runtime / name
    directory.mkdir(exist_ok=True)
    directory.chmod(_SEARCHED_BY_ALL)
    return directory / BACKEND_SOCKET


def backend_log(machine: LaunchPlan | InstanceRecord, name: str) -> Path:
    return machine.logs / f"{name}.log"
