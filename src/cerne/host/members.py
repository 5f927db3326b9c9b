"""The processes of one machine: its VMM, and those that serve its devices.

Each registers itself before it does anything else: in the machine's runtime directory there is a
file for it, made before it is started, to which it writes its pid and start time. A program is
started by a shell that writes them, and becomes the program; a forked VMM calls
`cerne.vmm.registration.register`.

A registration is withdrawn by removing the file and then reading it, and a process that has
registered looks whether its file is still there before it goes on. So either the process is found
and killed, or it ends by itself: there is no moment at which one is missed, whichever process is
killed meanwhile. No process is found by the words of its command line.
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
from cerne.host.process import ProcessIdentity, boot_id

MACHINE = "machine"
"""The role of the process that is the machine."""
SAVER = "saver"
"""The role of one that writes the machine to files, and ends."""
_SUPERVISOR = "-supervisor"
_NOTED = ".noted"

_LARGEST = 4096
_LONGEST_ENDING = 10.0
"""Seconds that a process which was killed may take to be gone."""
# The shell adds variables of its own to the environment.
_REGISTER = (
    'read -r status </proc/$$/stat && echo "$status" >&0 && [ -e "$0" ]'
    ' && unset PWD OLDPWD SHLVL _ && exec "$@" </dev/null'
)


def supervisor_of(role: str) -> str:
    """The role of what starts a process of this role again."""
    return f"{role}{_SUPERVISOR}"


class Member(NamedTuple):
    """One process, as it has registered itself."""

    role: str
    process: ProcessIdentity | None
    """None where it has not come to register itself."""
    file: Path

    @property
    def noted(self) -> bool:
        """Whether `note` was called."""
        return self.file.name.endswith(_NOTED)

    def note(self) -> None:
        """Remember that its end was told."""
        with contextlib.suppress(FileNotFoundError):
            self.file.rename(f"{self.file}{_NOTED}")

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.alive()


class Members:
    """The processes that a machine has registered in its runtime directory."""

    def __init__(self, runtime: Path) -> None:
        self._directory = runtime / "processes"

    def expect(self, role: str) -> tuple[int, Path]:
        """A registration for a process that is to be started: an open file, and its path.

        Raises:
            OSError: it cannot be made.
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
    def command(self, role: str, argv: Sequence[str]) -> Iterator[tuple[list[str], int]]:
        """How to start a program that registers itself: its arguments, and its standard input.

        Raises:
            OSError: it has no registration.
        """
        file, path = self.expect(role)
        try:
            yield ["/bin/sh", "-c", _REGISTER, str(path), *argv], file
        finally:
            os.close(file)

    def all(self) -> list[Member]:
        """Every process that is registered, whether it runs or not."""
        found = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                found.append(_read(path, path.read_bytes()))
        return found

    def alive(self, role: str = "") -> list[ProcessIdentity]:
        """Those that run, or those of one role."""
        return [
            member.process
            for member in self.all()
            if member.process is not None and member.alive and role in ("", member.role)
        ]

    def lost(self) -> list[Member]:
        """Those that have ended and are not started again, though the machine needs them."""
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
        """Kill them all, and wait until they are gone; none can come any more.

        Raises:
            HostError: one does not end.
        """
        # What is killed may have made another registration just before.
        while files := self._files():
            ending = [process for file in files if (process := _withdrawn(file)) is not None]
            for process in ending:
                process.send(signal.SIGKILL)
            for process in ending:
                if not process.wait(_LONGEST_ENDING):
                    raise HostError(
                        f"process {process.pid} does not end, though it was killed",
                        hint="it is stuck in the kernel: see dmesg",
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
    """Start a registered program, detached, which inherits these descriptors.

    Raises:
        OSError: it cannot be started.
    """
    with members.command(role, argv) as (command, registration):
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
    """Withdraw a registration; the process that has registered, if it did."""
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
        process = ProcessIdentity.from_status(boot.decode(), status) if status else None
    except (ValueError, IndexError):
        # It was killed while it wrote.
        process = None
    return Member(role, process, path)
