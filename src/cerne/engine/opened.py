"""The files that a command opens for a machine's process, which opens none itself."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Self

from cerne.engine.detached import listening_socket
from cerne.engine.plan import NetworkNic, TapNic
from cerne.errors import EngineError, StorageError
from cerne.host.cell_note import NOTE, CellNote
from cerne.host.members import Members
from cerne.network.tap import open_tap, open_vhost
from cerne.storage.locking import lock

_SEARCHED_BY_ALL = 0o711


class Report(NamedTuple):
    """A pipe with the result of a start."""

    what: str
    stream: IO[bytes]
    """The reading end; the reader closes it."""


class Opened:
    """Descriptors for one process; a context manager that closes them here.

    Its methods return the value for a descriptor in the process's configuration: its number, if the
    process inherits it, or its index among those that are `sent`.
    """

    def __init__(self, *, sent: bool = False) -> None:
        self._sent = sent
        self._descriptors: list[int] = []
        self.reports: list[Report] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All descriptors, in their order."""
        return tuple(self._descriptors)

    def take(self, descriptor: int) -> int:
        """Take over a descriptor."""
        self._descriptors.append(descriptor)
        return len(self._descriptors) - 1 if self._sent else descriptor

    def existing(self, path: Path, *, writable: bool = False) -> int:
        """Open an existing file.

        Raises:
            StorageError: opening it failed.
        """
        return self._open(path, os.O_RDWR if writable else os.O_RDONLY)

    def locked(self, path: Path, *, writable: bool) -> int:
        """Open a disk that others may use too, locked as long as the process has it open.

        Raises:
            StorageError: opening it failed.
            ConflictError: another machine has locked it.
        """
        number = self.existing(path, writable=writable)
        lock(self._descriptors[-1], path, writable=writable)
        return number

    def new(self, path: Path) -> int:
        """Make an empty file in place of an existing one.

        Raises:
            StorageError: making it failed.
        """
        path.unlink(missing_ok=True)
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def log(self, path: Path) -> int:
        """Open a file for appending.

        Raises:
            StorageError: opening it failed.
        """
        return self._open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def listening(self, path: Path) -> int:
        """Make a Unix socket that listens at `path`.

        Raises:
            EngineError: making it failed.
        """
        return self.take(listening_socket(path).detach())

    def registration(
        self, runtime: Path, role: str, *, confined: bool = False, user: int | None = None
    ) -> int:
        """Make the registration of a forked process (see `Members.expect`).

        Raises:
            StorageError: making it failed.
        """
        try:
            return self.take(Members(runtime).expect(role, confined=confined, user=user)[0])
        except OSError as error:
            raise StorageError(f"{runtime} is not writable: {error.strerror}") from error

    def doors(self, runtime: Path) -> tuple[int, ...]:
        """Open the files by which a forked process enters its machine's cell (`cerne.host.cell`).

        Raises:
            StorageError: opening one failed.
        """
        note = CellNote.read(runtime / NOTE)
        paths = () if note is None else note.doors
        return tuple(self._open(path, os.O_WRONLY) for path in paths)

    def searched(self, path: Path) -> int:
        """Make a directory in which the process may look up names, but not make or remove files.

        Another user may do so too; the parent directory controls the access.

        Raises:
            StorageError: making it failed.
        """
        try:
            path.mkdir()
            path.chmod(_SEARCHED_BY_ALL)
        except OSError as error:
            raise StorageError(f"making {path} failed: {error.strerror}") from error
        return self._open(path, os.O_PATH | os.O_DIRECTORY)

    def tap(self, nic: TapNic | NetworkNic) -> int:
        """Open a tap of the host, or take over another descriptor of a network's open tap.

        Raises:
            CerneError: as `cerne.network.tap.open_tap`.
            EngineError: the network has not opened its tap.
        """
        if isinstance(nic, TapNic):
            return self.take(open_tap(nic.interface))
        if nic.tap is None:
            raise EngineError(f"the card {nic.mac} is not connected to the network {nic.network}")
        return self.take(fcntl.fcntl(nic.tap, fcntl.F_DUPFD_CLOEXEC, 0))

    def vhost_net(self) -> int | None:
        """Open the host's /dev/vhost-net, if this user may."""
        descriptor = open_vhost()
        return None if descriptor is None else self.take(descriptor)

    @contextlib.contextmanager
    def pair(self) -> Iterator[tuple[int, int]]:
        """Make two connected sockets: one for the process, and one that is closed at exit.

        Raises:
            EngineError: making them failed.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise EngineError(f"connecting a network card failed: {error.strerror}") from error
        with theirs:
            yield self.take(ours.detach()), theirs.fileno()

    @contextlib.contextmanager
    def report(self, what: str) -> Iterator[int]:
        """Make a pipe, closed at exit, for the result of a start (see `reports`)."""
        reading, writing = os.pipe()
        self.reports.append(Report(what, os.fdopen(reading, "rb")))
        with os.fdopen(writing, "wb"):
            yield writing

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _open(self, path: Path, flags: int) -> int:
        try:
            return self.take(os.open(path, flags | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StorageError(
                f"opening {path} failed: {error.strerror}", hint=f"see: ls -l {path}"
            ) from error
