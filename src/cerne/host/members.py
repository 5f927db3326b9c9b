"""The processes of one machine: its VMM, and those that serve its devices.

Each process registers itself first: before it is started, a file for it is made in the machine's
runtime directory, and the process writes its pid and start time to this file. A shell writes them
for a program, and then executes the program; a forked process, which does not see its start time,
calls `cerne.vmm.registration.register`. A supervisor has one registration for all starts of its
program.

To withdraw a registration, a command removes the file and then reads it; a process that has
registered checks that its file is still there before it goes on. So either the process is found and
killed, or it ends by itself, even if a command is killed meanwhile. Cerne finds no process by the
words of its command line.

After that it enters the machine's cell (`cerne.host.cell`), if there is one, before it does
anything else. What it starts is in the cell too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cerne.errors import HostError
from cerne.host.cell_note import NOTE, CellNote
from cerne.host.process import ProcessIdentity, boot_id
from cerne.vmm.registration import FORKED

MACHINE = "machine"
"""The role of the machine's main process."""
SAVER = "saver"
"""The role of a process that writes the machine's state to files, and ends."""
_SUPERVISOR = "-supervisor"
_NOTED = ".noted"

_LARGEST = 4096
_LONGEST_ENDING = 10.0
"""Seconds within which a killed process has to end."""
# The shell adds its own variables to the environment.
_REGISTER = 'read -r status </proc/$$/stat && echo "$status" >&0 && [ -e "$0" ]'
_EXECUTE = 'unset PWD OLDPWD SHLVL _ && exec "$@" </dev/null'


def supervisor_of(role: str) -> str:
    """The role of the supervisor that restarts a process of this role."""
    return f"{role}{_SUPERVISOR}"


class Member(NamedTuple):
    """One registered process."""

    role: str
    process: ProcessIdentity | None
    """None if it has not registered itself yet."""
    file: Path

    @property
    def noted(self) -> bool:
        """Whether `note` was called."""
        return self.file.name.endswith(_NOTED)

    def note(self) -> None:
        """Remember that its end was reported."""
        with contextlib.suppress(FileNotFoundError):
            self.file.rename(f"{self.file}{_NOTED}")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.alive()


class Members:
    """The processes that are registered in a machine's runtime directory."""

    def __init__(self, runtime: Path) -> None:
        self._directory = runtime / "processes"
        self._note = runtime / NOTE

    def expect(self, role: str) -> tuple[int, Path]:
        """Make a registration for a process before its start; return the open file and its path.

        Raises:
            OSError: making the file failed.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for former in self.all():
            if former.role == role and former.process is not None and not former.alive:
                former.file.unlink(missing_ok=True)
        path = self._directory / f"{role}.{uuid.uuid4().hex[:8]}"
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        os.write(file, f"{boot_id()}\n".encode())
        return file, path

    @contextlib.contextmanager
    def command(
        self, role: str, argv: Sequence[str], *, enters: bool = False
    ) -> Iterator[tuple[list[str], int]]:
        """The arguments and the standard input with which a program starts and registers itself.

        It `enters` the machine's cell, unless a process starts it that is in the cell.

        Raises:
            OSError: making the registration failed.
        """
        note = CellNote.read(self._note) if enters else None
        entering = [] if note is None else [note.entering]
        script = " && ".join(filter(None, [_REGISTER, *entering, _EXECUTE]))
        file, path = self.expect(role)
        try:
            yield ["/bin/sh", "-c", script, str(path), *argv], file
        finally:
            os.close(file)

    def all(self) -> list[Member]:
        """Every registered process, running or not."""
        found = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                found.append(_read(path, path.read_bytes()))
        return found

    def alive(self, role: str = "") -> list[ProcessIdentity]:
        """The processes that run, of all roles or of one."""
        return [
            member.process
            for member in self.all()
            if member.process is not None and member.alive and role in ("", member.role)
        ]

    def lost(self) -> list[Member]:
        """The ended processes that the machine needs and that no supervisor restarts."""
        members = self.all()
        running = {member.role for member in members if member.alive}
        return [
            member
            for member in members
            if member.process is not None
            and member.role not in (MACHINE, SAVER)
            and not member.role.endswith(_SUPERVISOR)
            and not running & {member.role, supervisor_of(member.role)}
        ]

    def end(self) -> None:
        """Kill all processes, and wait until they have ended; no further process can register.

        Raises:
            HostError: a process does not end.
        """
        # A process may have made another registration just before it was killed.
        while files := self._files():
            ending = [process for file in files if (process := _withdrawn(file)) is not None]
            for process in ending:
                process.send(signal.SIGKILL)
            for process in ending:
                if not process.wait(_LONGEST_ENDING):
                    raise HostError(
                        f"process {process.pid} was killed and does not end",
                        hint="it hangs in the kernel: see dmesg",
                    )

    def _files(self) -> list[Path]:
        try:
            return sorted(self._directory.iterdir())
        except FileNotFoundError:
            return []


def start_member(
    members: Members,
    role: str,
    argv: Sequence[str],
    descriptors: Sequence[int],
    output: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a registered program in the machine's cell, detached, with these descriptors inherited.

    Raises:
        OSError: the start failed.
    """
    with members.command(role, argv, enters=True) as (command, registration):
        return subprocess.Popen(
            command,
            stdin=registration,
            stdout=output,
            stderr=output,
            pass_fds=descriptors,
            start_new_session=True,
            cwd="/",
            env={"LC_ALL": "C"},
        )


def _withdrawn(path: Path) -> ProcessIdentity | None:
    """Withdraw a registration; return the process that has registered, if any."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        path.unlink(missing_ok=True)
        return _read(path, os.read(file, _LARGEST)).process
    finally:
        os.close(file)


def _read(path: Path, data: bytes) -> Member:
    role = path.name.partition(".")[0]
    boot, _, status = data.partition(b"\n")
    try:
        process = _registered(boot.decode(), status) if status else None
    except (ValueError, IndexError):
        # The process was killed while it wrote.
        process = None
    return Member(role, process, path)


def _registered(boot: str, status: bytes) -> ProcessIdentity:
    """The process that has written this.

    Raises:
        ValueError, IndexError: it was killed while it wrote.
    """
    if not status.startswith(FORKED):
        return ProcessIdentity.from_status(boot, status)
    _, pid, ticks = status.split()
    if not status.endswith(b"\n"):
        raise ValueError("the last number is not complete")
    present = ProcessIdentity.of(int(pid)) if boot == boot_id() else None
    if present is not None and present.start_time <= int(ticks):
        return present
    # It has ended.
    return ProcessIdentity(int(pid), int(ticks), boot)
