"""Supervises a process that serves a device of one machine: it starts it again, and ends with it.

Run as a program of its own, with the standard library and little more: there is one for each such
process. Its argument is a `Task` in JSON. Each end of the process is noted for the next command
(`cerne.host.notes`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

if not __package__:
    sys.path.append(__file__.rpartition("/cerne/")[0])

from cerne.host.logs import last_line
from cerne.host.members import Members
from cerne.host.notes import Notes

LINK, READY = "@LINK@", "@READY@"
"""In a command: the numbers of the descriptors of its connection, and of the pipe to write to."""
GOOD = b"good"
"""What is reported when the process serves."""

_SOON = 5.0
"""Seconds within which a process that ends has never worked."""
_MOST_FAILURES = 10
_DELAY = 0.1
_PATIENCE = 10.0


class Task(NamedTuple):
    """What to supervise."""

    runtime: str
    """The machine's runtime directory."""
    role: str
    """What the process is registered as."""
    what: str
    """What it is, for people."""
    log: str
    """Where its output goes, as this process's own does."""
    leash: int
    """A socket to the machine's process, on which that says that it ends in order, and which breaks
    when it was killed."""
    inherited: list[int]
    """Descriptors that the process inherits."""
    command: list[str]
    listener: int | None = None
    """A socket at which the machine's process connects, for a process that does not listen itself:
    it is given the connection."""
    report: int | None = None
    """Where to say once how the first start went; if badly, the process is not started again."""
    mending: str = ""
    """What is to be done in the guest once the process was started again, for people."""


class Supervisor:
    """Supervises one process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._members = Members(Path(task.runtime))
        self._leash = socket.socket(fileno=task.leash)
        self._report = task.report

    def run(self) -> int:
        """Keep the process until the machine's end; the exit status."""
        failures = 0
        while True:
            began = time.monotonic()
            status = self._serve()
            if status is None:
                return 0
            failures = failures + 1 if time.monotonic() - began < _SOON else 0
            # The machine may have ended just now, of which the process may know before.
            if select.select([self._leash], [], [], _DELAY)[0]:
                return 0
            words = self._words(status)
            if self._say(words.encode()) or failures == _MOST_FAILURES:
                self._note(f"{words}; it is not started again")
                return 1
            mending = f"; {self._task.mending}" if self._task.mending else ""
            self._note(f"{words}; it was started again{mending}")

    def _serve(self) -> int | None:
        """Run the process once; its status, or None where the machine has ended."""
        with self._connection() as link:
            if link is None:
                return None
            reading, writing = os.pipe()
            # It may be another user's by the time that it opens the pipe.
            os.fchmod(writing, 0o666)
            with os.fdopen(reading, "rb") as ready:
                with os.fdopen(writing, "wb"):
                    child = self._start(link, writing)
                # The process alone has it now.
                if link >= 0:
                    os.close(link)
                return self._watch(child, ready.fileno())

    @contextlib.contextmanager
    def _connection(self) -> Iterator[int | None]:
        """The connection to serve, -1 where it listens itself; None at the machine's end."""
        if self._task.listener is None:
            yield -1
            return
        with socket.socket(fileno=os.dup(self._task.listener)) as listener:
            if self._leash in select.select([self._leash, listener], [], [])[0]:
                yield None
                return
            yield listener.accept()[0].detach()

    def _start(self, link: int, ready: int) -> subprocess.Popen[bytes]:
        task = self._task
        words = {LINK: str(link), READY: str(ready)}
        command = [_filled(word, words) for word in task.command]
        inherited = [*task.inherited, *([link, ready] if link >= 0 else [])]
        with self._members.command(task.role, command) as (argv, registration):
            return subprocess.Popen(argv, stdin=registration, pass_fds=inherited)

    def _watch(self, child: subprocess.Popen[bytes], ready: int) -> int | None:
        watch = os.pidfd_open(child.pid)
        waited = [self._leash.fileno(), watch, ready]
        try:
            while True:
                found, _, _ = select.select(waited, [], [])
                if self._leash.fileno() in found:
                    self._end(child)
                    return None
                if ready in found:
                    waited.remove(ready)
                    if os.read(ready, 100):
                        self._say(GOOD)
                elif watch in found:
                    return child.wait()
        finally:
            os.close(watch)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        orderly = False
        with contextlib.suppress(OSError):
            orderly = bool(self._leash.recv(16))
        child.send_signal(signal.SIGTERM if orderly else signal.SIGKILL)
        try:
            child.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _say(self, words: bytes) -> bool:
        """Report how the first start went; whether that was still to be said."""
        if self._report is None:
            return False
        with contextlib.suppress(OSError), os.fdopen(self._report, "wb") as report:
            report.write(words)
        self._report = None
        return True

    def _words(self, status: int) -> str:
        if status < 0:
            return f"{self._task.what} was killed by {signal.Signals(-status).name}"
        said = last_line(Path(self._task.log))
        return f"{self._task.what} ended with status {status}" + (f": {said}" if said else "")

    def _note(self, words: str) -> None:
        # On a full disk, or once the machine's directory is gone, nobody can be told.
        with contextlib.suppress(OSError):
            Notes(Path(self._task.runtime)).add(words)


def _filled(word: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(name, value)
    return word


if __name__ == "__main__":
    sys.exit(Supervisor(Task(**json.loads(sys.argv[1]))).run())
