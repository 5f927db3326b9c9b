"""The files that a machine's process is given by whoever starts it: it opens none itself."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, Self

from cerne.engine.detached import listening_socket
from cerne.errors import EngineError, StorageError
from cerne.host.members import Members
from cerne.network.tap import open_tap, open_vhost
from cerne.storage.locking import lock

_SEARCHED_BY_ALL = 0o711


class Report(NamedTuple):
    """Where to read how the start of something went."""

    what: str
    stream: IO[bytes]
    """To be closed by who reads it."""


class Opened:
    """Descriptors for one process; a context manager that closes them here.

    What its methods return stands for a descriptor in the process's configuration: its number,
    where the process inherits it, or its place among those that are `sent`.
    """

    def __init__(self, *, sent: bool = False) -> None:
        self._sent = sent
        self._descriptors: list[int] = []
        self.reports: list[Report] = []

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All of them, in the order of their places."""
        return tuple(self._descriptors)

    def take(self, descriptor: int) -> int:
        """Take over a descriptor."""
        self._descriptors.append(descriptor)
        return len(self._descriptors) - 1 if self._sent else descriptor

    def existing(self, path: Path, *, writable: bool = False) -> int:
        """A file that is there.

        Raises:
            StorageError: it cannot be opened.
        """
        return self._open(path, os.O_RDWR if writable else os.O_RDONLY)

    def locked(self, path: Path, *, writable: bool) -> int:
        """A disk that others may use too, locked for as long as the process has it open.

        Raises:
            StorageError: it cannot be opened.
            ConflictError: another has locked it.
        """
        number = self.existing(path, writable=writable)
        lock(self._descriptors[-1], path, writable=writable)
        return number

    def new(self, path: Path) -> int:
        """An empty file in the place of what was there.

        Raises:
            StorageError: it cannot be made.
        """
        path.unlink(missing_ok=True)
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def log(self, path: Path) -> int:
        """A file that is written at its end.

        Raises:
            StorageError: it cannot be opened.
        """
        return self._open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def listening(self, path: Path) -> int:
        """A Unix socket that listens at `path`.

        Raises:
            EngineError: it cannot be made.
        """
        return self.take(listening_socket(path).detach())

    def registration(self, runtime: Path, role: str) -> int:
        """What a forked process registers itself by (see `cerne.host.members`).

        Raises:
            StorageError: it cannot be made.
        """
        try:
            return self.take(Members(runtime).expect(role)[0])
        except OSError as error:
            raise StorageError(f"{runtime} cannot be written: {error.strerror}") from error

    def searched(self, path: Path) -> int:
        """A new directory, whose names the process may look up, and none make or remove.

        It may as another user: who may come there is for the directory above it to say.

        Raises:
            StorageError: it cannot be made.
        """
        try:
            path.mkdir()
            path.chmod(_SEARCHED_BY_ALL)
        except OSError as error:
            raise StorageError(f"{path} cannot be made: {error.strerror}") from error
        return self._open(path, os.O_PATH | os.O_DIRECTORY)

    def tap(self, interface: str) -> int:
        """A tap (see `cerne.network.tap.open_tap`, also for what is raised)."""
        return self.take(open_tap(interface))

    def vhost_net(self) -> int | None:
        """The host's /dev/vhost-net, if it has one for this user."""
        descriptor = open_vhost()
        return None if descriptor is None else self.take(descriptor)

    @contextlib.contextmanager
    def pair(self) -> Iterator[tuple[int, int]]:
        """Two connected sockets: one for the process, and the other, which is closed at exit.

        Raises:
            EngineError: they cannot be made.
        """
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise EngineError(f"a card cannot be connected: {error.strerror}") from error
        with theirs:
            yield self.take(ours.detach()), theirs.fileno()

    @contextlib.contextmanager
    def report(self, what: str) -> Iterator[int]:
        """A pipe, closed at exit, to which what is started says how that went (see `reports`)."""
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
            raise StorageError(f"{path} cannot be opened: {error.strerror}") from error
