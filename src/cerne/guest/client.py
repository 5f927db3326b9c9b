"""The host's side of the guest agent: commands, files, clean shutdown (``docs/agent.md``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cerne.guest.process import ExecResult, GuestProcess, TerminalSize


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What a guest says of itself: not to be trusted further than the guest is."""

    hostname: str
    kernel: str
    """As ``uname -r`` has it."""
    architecture: str
    system: str
    """The distribution's pretty name."""
    boot_id: str
    uptime: float
    """Seconds since the guest booted."""
    agent_version: str


class GuestAgent:
    """The agent of one guest, reached by its ports' sockets on this host.

    Each call takes a free port for as long as it lasts, so that as many calls can run side by
    side as there are sockets; processes on this host agree by a lock file beside each socket.
    """

    def __init__(self, sockets: Sequence[Path]) -> None:
        self._sockets = tuple(sockets)

    def wait_ready(self, timeout: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait until the agent answers, at most `timeout` seconds.

        `alive` is asked now and then whether the machine still runs, and may raise.

        Raises:
            GuestTimeoutError: the agent did not answer in time.
            GuestError: the machine ended first, or the agent speaks another version.
        """
        raise NotImplementedError

    def info(self) -> GuestInfo:
        """What the guest says of itself."""
        raise NotImplementedError

    def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | BinaryIO | Iterable[bytes] | None = None,
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a command and gather what it writes.

        Args:
            env: set over the guest's own (PATH, HOME, USER, LOGNAME, SHELL).
            cwd: the user's home where none is given.
            user: ``NAME``, ``UID``, ``NAME:GROUP`` or ``UID:GID``; root where none is given.
            timeout: seconds, after which the command is killed.

        Raises:
            InputError: an argument that no process could be given (a NUL, no program, too long).
            GuestTimeoutError: the command was killed at `timeout`.
            GuestError: it could not be started (in the guest's words), or the guest went away.
            BusyError: all ports are taken.
        """
        raise NotImplementedError

    def popen(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        terminal: TerminalSize | None = None,
    ) -> GuestProcess:
        """Start a command, with streams or on a terminal of its own; as `run` otherwise."""
        raise NotImplementedError

    def push(self, local: Path, remote: str) -> None:
        """Copy a file or a directory into the guest.

        It goes into `remote` where that is a directory, or else becomes `remote`. Modes, times
        and symbolic links are kept; a file is replaced whole or not at all.

        Raises:
            NotFoundError: there is nothing at `local`.
            GuestError: the guest could not write it (in its words).
        """
        raise NotImplementedError

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file or a directory out of the guest.

        It goes into `local` where that is a directory, or else becomes `local`. Nothing that the
        guest says leads outside of `local`.

        Raises:
            GuestError: the guest could not read it, or sent what makes no sense.
            StorageError: this host could not write it.
        """
        raise NotImplementedError

    def shutdown(self, *, reboot: bool = False) -> None:
        """Ask the guest to shut down, or to reboot; returns once it has agreed."""
        raise NotImplementedError

    def set_time(self) -> None:
        """Set the guest's clock to this host's."""
        raise NotImplementedError

    def add_entropy(self, data: bytes) -> None:
        """Give the guest's random number generator up to 512 bytes of entropy, and reseed it."""
        raise NotImplementedError

    def freeze(self, timeout: float = 10.0) -> int:
        """Freeze the guest's file systems; how many. They thaw by themselves after `timeout` s."""
        raise NotImplementedError

    def thaw(self) -> int:
        """Thaw the guest's file systems; how many were frozen."""
        raise NotImplementedError
