"""Supervises a process that serves a device of one machine: restarts it, and ends with the machine.

It runs as a separate program for each such process, with the standard library and little more. Its
argument is a `Task` in JSON. It notes each end of the process for the next command
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
"""Placeholders in a command: the descriptors of its connection, and of its report's pipe."""
GOOD = b"good"
"""The report when the process serves."""

_SOON = 5.0
"""A process that ends within these seconds counts as failed."""
_MOST_FAILURES = 10
_DELAY = 0.1
_PATIENCE = 10.0


class Task(NamedTuple):
    """The task of a supervisor."""

    runtime: str
    """The machine's runtime directory."""
    role: str
    """The role of the process."""
    what: str
    """Its name for people."""
    log: str
    """The log of its output, and of this process's."""
    leash: int
    """A socket to the machine's process, written at an orderly end and closed at every end."""
    inherited: list[int]
    """Descriptors that the process inherits."""
    command: list[str]
    listener: int | None = None
    """A listening socket for a process that does not listen itself: it gets the connection."""
    report: int | None = None
    """The pipe for the result of the first start; after a failure there is no restart."""
    mending: str = ""
    """What to do in the guest after a restart of the process, for people."""


class Supervisor:
    """Supervises one process."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._members = Members(Path(task.runtime))
        self._leash = socket.socket(fileno=task.leash)
        self._report = task.report

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
            if select.select([self._leash], [], [], _DELAY)[0]:
                return 0
            words = self._words(status)
            if self._say(words.encode()) or failures == _MOST_FAILURES:
                self._note(f"{words}; it is not restarted")
                return 1
            mending = f"; {self._task.mending}" if self._task.mending else ""
            self._note(f"{words}; it was restarted{mending}")

    def _serve(self) -> int | None:
        """Run the process once; return its status, or None if the machine has ended."""
        with self._connection() as link:
            if link is None:
                return None
            reading, writing = os.pipe()
            # The process may run as another user when it opens the pipe.
            os.fchmod(writing, 0o666)
            with os.fdopen(reading, "rb") as ready:
                with os.fdopen(writing, "wb"):
                    child = self._start(link, writing)
                # Only the process has it now.
                if link >= 0:
                    os.close(link)
                return self._watch(child, ready.fileno())

    @contextlib.contextmanager
    def _connection(self) -> Iterator[int | None]:
        """The connection to serve; -1 if the process listens itself; None at the machine's end."""
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
        said = last_line(Path(self._task.log))
        return f"{self._task.what} ended with status {status}" + (f": {said}" if said else "")

    def _note(self, words: str) -> None:
        # If the disk is full, or the machine's directory is gone, the note is lost.
        with contextlib.suppress(OSError):
            Notes(Path(self._task.runtime)).add(words)


def _filled(word: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(name, value)
    return word


if __name__ == "__main__":
    sys.exit(Supervisor(Task(**json.loads(sys.argv[1]))).run())
