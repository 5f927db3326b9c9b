"""Starts the processes that serve devices of a machine, and that end with it.

Each has a supervisor (`cerne.engine.supervisor`) and a socket in the machine's runtime directory,
and writes to a log in the machine's directory of logs.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine import supervise
from cerne.engine.detached import spawn
from cerne.engine.opened import Opened, Report
from cerne.engine.plan import LaunchPlan
from cerne.engine.record import InstanceRecord
from cerne.engine.supervisor import GOOD, CardTask, Task
from cerne.errors import EngineError
from cerne.host import user_ids
from cerne.host.members import Members, supervisor_of
from cerne.host.notes import Notes
from cerne.vmm.jail.bpf import ALLOW, Rule
from cerne.vmm.jail.bpf import program as compiled
from cerne.vmm.jail.program import SYSTEM, Room
from cerne.vmm.jail.system import MOST_DESCRIPTORS

if TYPE_CHECKING:
    from cerne.vmm.config import BackendConfig

_SEARCHED_BY_ALL = 0o711
_START_TIMEOUT = 30.0
_MOST_MEMORY = 1 << 30
_MOST_THREADS = 256
"""Of a program with a user id of its own."""


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
    room: Room,
    command: Sequence[str],
    mending: str = "",
    before: Sequence[str] = (),
    own_user: bool = True,
) -> BackendConfig:
    """Start a backend with its supervisor, and connect to the socket at which it listens.

    It has its `own_user`, if this host has user ids.
    """
    path = backend_socket(machine, name)
    # The machine's process is another user when it connects again; the directory is in a private
    # one, and it is searched from a descriptor.
    path.chmod(0o666)
    with opened.pair() as (leash, supervisors_end):
        task = Task(
            what=what,
            command=command,
            inherited=[listener.fileno()],
            leash=supervisors_end,
            mending=mending,
        )
        start_supervisor(machine, name, task, room, before=before, own_user=own_user)
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(path))
    except OSError as error:
        link.close()
        raise EngineError(f"connecting to {path} failed: {error.strerror}") from error
    # A machine whose cards alone are served by others needs nothing of it.
    from cerne.vmm.config import BackendConfig

    return BackendConfig(
        link=opened.take(link.detach()),
        address=opened.take(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)),
        leash=leash,
    )


def start_supervisor(
    machine: LaunchPlan | InstanceRecord,
    name: str,
    task: Task,
    room: Room,
    card: CardTask | None = None,
    before: Sequence[str] = (),
    *,
    own_user: bool = True,
) -> None:
    """Start the supervisor of a process, or of a card and its process.

    It inherits the descriptors of its task, and the files of the machine that each supervisor needs
    are opened for it. It has its `own_user`, if this host has user ids.

    Raises:
        EngineError: starting it failed.
        StorageError: its log is not writable.
    """
    log = backend_log(machine, name)
    with contextlib.ExitStack() as closing:
        leases = _lease(room, closing) if own_user else []
        room.own_cores = machine.strict
        files = []
        for file in (
            Members(machine.runtime).expect(name, confined=True, user=room.user)[0],
            Notes(machine.runtime).open(),
            os.open(log, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600),
        ):
            closing.callback(os.close, file)
            files.append(file)
        task.room = room.words()
        task.registration, task.notes, task.log = files
        words = ["process", task.word()] if card is None else ["card", task.word(), card.word()]
        argv = [*before, sys.executable, "-I", "-S", supervise.__file__, *words]
        inherited = [*task.descriptors, *leases, *([] if card is None else [card.link])]
        spawn(argv, log, inherited, machine.runtime, supervisor_of(name))


def backend_socket(machine: LaunchPlan | InstanceRecord, name: str) -> Path:
    directory = machine.runtime / name
    directory.mkdir(exist_ok=True)
    directory.chmod(_SEARCHED_BY_ALL)
    from cerne.vmm.config import BACKEND_SOCKET

    return directory / BACKEND_SOCKET


def backend_log(machine: LaunchPlan | InstanceRecord, name: str) -> Path:
    return machine.logs / f"{name}.log"


def room_of(program: Path, calls: Sequence[Rule], *, network: bool = False) -> Room:
    """What a program needs that starts no other."""
    real = program.resolve()
    return Room(
        own_root=real.is_relative_to(SYSTEM),
        # Variants of it for some processors are beside it.
        programs=[str(program), *(str(path) for path in real.parent.glob(f"{real.name}.*"))],
        network=network,
        filter=compiled(calls, ALLOW),
        descriptors=MOST_DESCRIPTORS,
        memory=_MOST_MEMORY,
    )


def _lease(room: Room, closing: contextlib.ExitStack) -> list[int]:
    """Give a room a user id, if this host has them; return the lease's descriptor."""
    lease = user_ids.take() if room.own_root else None
    if lease is None:
        return []
    closing.callback(os.close, lease.descriptor)
    room.user, room.threads = lease.user, _MOST_THREADS
    return [lease.descriptor]
