"""Supervises a process that serves a device of one machine: restarts it, and ends with the machine.

It runs as a separate program for each such process (`cerne.engine.supervise`), with little of the
standard library: json and typing would make its start a fifth longer. It confines itself before it
starts the process, which gets the same walls (`cerne.vmm.jail.program`); from then on it opens no
file, so it has all that it needs as descriptors. It notes each end of the process for the next
command (`cerne.host.notes`).
"""

from __future__ import annotations

import contextlib
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence

from cerne.host.logs import last_line_of
from cerne.host.notes import add_note
from cerne.vmm.jail import system
from cerne.vmm.jail.program import RefusedError, Room, confine
from cerne.vmm.registration import register

# As in typing, which is not imported.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LINK, READY = "@LINK@", "@READY@"
"""Placeholders in a command: the descriptors of its connection, and of its report's pipe."""
GOOD = b"good"
"""The report when the process serves."""

_SOON = 5.0
"""A process that ends within these seconds counts as failed."""
_MOST_FAILURES = 10
_DELAY = 0.1
_PATIENCE = 10.0
_NOT_EXECUTED = 127


class Task:
    """The task of a supervisor. It inherits all descriptors in it."""

    def __init__(
        self,
        what: str,
        command: Sequence[str],
        inherited: Sequence[int] = (),
        *,
        leash: int | None = None,
        report: int | None = None,
        mending: str = "",
        room: Sequence[str] = (),
        registration: int = -1,
        notes: int = -1,
        log: int = -1,
    ) -> None:
        self.what = what
        """The name of the process for people."""
        self.command = [*command]
        self.inherited = [*inherited]
        """Descriptors that the process inherits."""
        self.leash = leash
        """A socket to the machine's process, written at an orderly end and closed at every end."""
        self.report = report
        """The pipe for the result of the first start; after a failure there is no restart."""
        self.mending = mending
        """What to do in the guest after a restart of the process, for people."""
        self.room = [*room]
        """What it needs of the host (`Room.words`)."""
        self.registration = registration
        """The registration of the process (see `cerne.host.members`), for each of its starts."""
        self.notes = notes
        """The machine's notes."""
        self.log = log
        """The log of its output, and of this process's."""

    @property
    def descriptors(self) -> list[int]:
        """All that this process inherits."""
        own = [self.registration, self.notes, self.log]
        optional = [each for each in (self.leash, self.report) if each is not None]
        return [*self.inherited, *own, *optional]

    def word(self) -> str:
        """The argument of the program for it."""
        return _word(vars(self))

    @classmethod
    def from_word(cls, word: str) -> Task:
        """What `word` described."""
        return cls(**_described(word))


class CardTask:
    """The card that a supervisor serves."""

    def __init__(self, link: int, mac: str, host_access: Sequence[int]) -> None:
        self.link = link
        """The stream socket to the machine's process."""
        self.mac = mac
        self.host_access = [*host_access]
        """Ports of the host's loopback that the guest reaches at its gateway."""

    def word(self) -> str:
        """The argument of the program for it."""
        return _word(vars(self))

    @classmethod
    def from_word(cls, word: str) -> CardTask:
        """What `word` described."""
        return cls(**_described(word))


class Supervisor:
    """Supervises one process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._leash = None if task.leash is None else socket.socket(fileno=task.leash)
        self._report = task.report
        self._boot = os.pread(task.registration, 100, 0).partition(b"\n")[0]
        self._empty = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for descriptor in task.descriptors:
            os.set_inheritable(descriptor, False)

    def run(self) -> int:
        """Keep the process running until the machine's end; return the exit status."""
        failures = 0
        while True:
            began = time.monotonic()
            status = self._serve()
            if status is None:
                return 0
            failures = failures + 1 if time.monotonic() - began < _SOON else 0
            # The machine may have just ended, and the process may notice that first.
            if self._has_ended(_DELAY):
                return 0
            words = self._words(status)
            if self._say(words.encode()) or failures == _MOST_FAILURES:
                self._note(f"{words}; it is not restarted")
                return 1
            mending = f"; {self._task.mending}" if self._task.mending else ""
            self._note(f"{words}; it was restarted{mending}")

    def _has_ended(self, patience: float) -> bool:
        """Whether the machine ends within these seconds."""
        assert self._leash is not None
        return bool(select.select([self._leash.fileno()], [], [], patience)[0])

    def _serve(self) -> int | None:
        """Run the process once; return its status, or None if the machine has ended."""
        child = self._start()
        watch = os.pidfd_open(child)
        try:
            assert self._leash is not None
            leash = self._leash.fileno()
            if leash in select.select([leash, watch], [], [])[0]:
                self._end(child, watch)
                return None
            return status_of(child)
        finally:
            os.close(watch)

    def _start(self, link: int = -1, ready: int = -1) -> int:
        """Start it, with a connection and the pipe for its report if it has them."""
        task = self._task
        words = {LINK: str(link), READY: str(ready)}
        command = [_filled(word, words) for word in task.command]
        inherited = [*task.inherited, *([link, ready] if link >= 0 else [])]
        # The former process has ended: its registration is the next one's.
        os.ftruncate(task.registration, 0)
        os.write(task.registration, self._boot + b"\n")
        supervisor = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                self._become(command, inherited, supervisor)
            except OSError as error:
                os.write(2, f"executing {command[0]} failed: {error.strerror}\n".encode())
            finally:
                os._exit(_NOT_EXECUTED)
        return child

    def _become(self, command: list[str], inherited: list[int], supervisor: int) -> None:
        register(os.dup(self._task.registration))
        system.prctl(system.Prctl.PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            return
        os.dup2(self._empty, 0)
        for descriptor in inherited:
            os.set_inheritable(descriptor, True)
        os.execv(command[0], command)

    def _end(self, child: int, watch: int) -> None:
        orderly = False
        if self._leash is not None:
            with contextlib.suppress(OSError):
                orderly = bool(self._leash.recv(16))
        os.kill(child, signal.SIGTERM if orderly else signal.SIGKILL)
        if not select.select([watch], [], [], _PATIENCE)[0]:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def _say(self, words: bytes) -> bool:
        """Report the result of the first start; return False if it was reported before."""
        if self._report is None:
            return False
        with contextlib.suppress(OSError), os.fdopen(self._report, "wb") as report:
            report.write(words)
        self._report = None
        return True

    def _words(self, status: int) -> str:
        if status < 0:
            return f"{self._task.what} was killed by {signal.Signals(-status).name}"
        said = last_line_of(self._task.log)
        return f"{self._task.what} ended with status {status}" + (f": {said}" if said else "")

    def _note(self, words: str) -> None:
        # If the disk is full, the note is lost.
        with contextlib.suppress(OSError):
            add_note(self._task.notes, words)


def status_of(child: int) -> int:
    """The status of a child that has ended; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(supervisor: Supervisor, task: Task) -> int:
    """Confine this process, and supervise another."""
    try:
        confine(Room.from_words([*task.room[:-1]]))
    except RefusedError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    # No process of the same user reads its memory.
    system.prctl(system.Prctl.SET_DUMPABLE, 0)
    return supervisor.run()


def _filled(word: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(name, value)
    return word


def _word(values: dict[str, object]) -> str:
    # The reader is of the same interpreter.
    return marshal.dumps(values).hex()


def _described(word: str) -> dict[str, Any]:
    values: dict[str, Any] = marshal.loads(bytes.fromhex(word))
    return values


def main(words: Sequence[str]) -> int:
    """Supervise the process of the task in the words."""
    task = Task.from_word(words[0])
    return run(Supervisor(task), task)
