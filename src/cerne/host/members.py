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

Some registrations are written by processes that serve a guest, or supervise one that does: they may
be in an attacker's hands, and write what they like. So such a registration counts only for a
process that started after it was made, that no program gives more privileges
(PR_SET_NO_NEW_PRIVS), and that has the machine's user id or the registered supervisor as its
parent. The kernel is asked for that, and the file's name says what is expected. No other process is
killed for what a registration says.

After a process has registered, it enters the machine's cell (`cerne.host.cell`), if there is one,
before it does anything else. What it starts is in the cell too.
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
from cerne.host.process import ProcessIdentity, boot_id, status_of
from cerne.vmm.registration import FORKED, boot_ticks

MACHINE = "machine"
"""The role of the machine's main process."""
SAVER = "saver"
"""The role of a process that writes the machine's state to files, and ends."""
_SUPERVISOR = "-supervisor"
_NOTED = ".noted"
_CONFINED = "confined"

_LARGEST = 4096
_LARGEST_PID = 1 << 22
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


class Expected(NamedTuple):
    """What is asked of a process whose registration may be written by an attacker."""

    user: int | None
    """Its user id; None if that may be root's."""
    since: int
    """It starts no earlier, in clock ticks since boot."""

    @property
    def name(self) -> str:
        """The end of the file's name."""
        return f".{_CONFINED}-{self.since}-{'' if self.user is None else self.user}"

    @classmethod
    def of(cls, path: Path) -> Expected | None:
        """What is asked of the process of a file; None if only trusted ones write it."""
        for part in path.name.split("."):
            kind, _, rest = part.partition("-")
            if kind == _CONFINED:
                since, _, user = rest.partition("-")
                return cls(int(user) if user else None, int(since))
        return None

    def fits(self, process: ProcessIdentity, supervisor: int | None) -> bool:
        """Whether it is such a process; `supervisor` is the pid of the one that starts it."""
        try:
            said = status_of(Path(f"/proc/{process.pid}"))
        except OSError:
            # It has ended, so that nothing happens to it.
            return not process.alive()
        confined = said["NoNewPrivs"] == "1" and process.start_time >= self.since
        child = supervisor is not None and said["PPid"] == str(supervisor)
        fits = confined and (child or said["Uid"].split()[0] == str(self.user))
        # What was read is of this process, and of no later one with its pid.
        return fits or not process.alive()


class Members:
    """The processes that are registered in a machine's runtime directory."""

    def __init__(self, runtime: Path) -> None:
        self._directory = runtime / "processes"
        self._note = runtime / NOTE

    def expect(
        self, role: str, *, confined: bool = False, user: int | None = None
    ) -> tuple[int, Path]:
        """Make a registration for a process before its start; return the open file and its path.

        It is `confined` if a process that an attacker may have writes it, with this `user` id.

        Raises:
            OSError: making the file failed.
        """
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for former in self.all():
            if former.role == role and former.process is not None and not former.alive:
                former.file.unlink(missing_ok=True)
        user = os.geteuid() or None if user is None else user
        expected = Expected(user, boot_ticks()).name if confined else ""
        path = self._directory / f"{role}.{uuid.uuid4().hex[:8]}{expected}"
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
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                found.append(_read(path, file.read(_LARGEST)))
        return _believed(found)

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
            withdrawn = [member for file in files if (member := _withdrawn(file)) is not None]
            ending = [each.process for each in _believed(withdrawn) if each.process is not None]
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


def _believed(members: list[Member]) -> list[Member]:
    """The same, without the processes that are not what is expected of them."""
    pids = {each.role: each.process.pid for each in members if each.process and each.alive}
    found = []
    for member in members:
        expected = Expected.of(member.file)
        if expected is not None and member.process is not None:
            supervisor = pids.get(supervisor_of(member.role))
            if not expected.fits(member.process, supervisor):
                member = member._replace(process=None)
        found.append(member)
    return found


def _withdrawn(path: Path) -> Member | None:
    """Withdraw a registration; return what it said, if it was there."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        path.unlink(missing_ok=True)
        return _read(path, os.read(file, _LARGEST))
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
    pid = int(status.split()[1 if status.startswith(FORKED) else 0])
    if not 0 < pid <= _LARGEST_PID:
        raise ValueError("it is not a pid")
    if not status.startswith(FORKED):
        return ProcessIdentity.from_status(boot, status)
    _, _, ticks = status.split()
    if not status.endswith(b"\n"):
        raise ValueError("the last number is not complete")
    present = ProcessIdentity.of(pid) if boot == boot_id() else None
    if present is not None and present.start_time <= int(ticks):
        return present
    # It has ended.
    return ProcessIdentity(pid, int(ticks), boot)
