"""The SQLite database in WAL mode: its connection, its transactions, and what can go wrong.

Every change is one transaction (https://sqlite.org/wal.html), which looks first whether the store
is still of the version that this code writes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.errors import ConflictError, DamagedError, StateError, StorageError
from cerne.manager.store.changes import Waiters
from cerne.manager.store.migrations import VERSION, migrate
from cerne.manager.store.reserve import Reserve

if TYPE_CHECKING:
    from cerne.host.ledger import HostLedger

Value = str | float | None
"""What a column holds."""

_BUSY_SECONDS = 20.0


class Database:
    """The database of one home, open until it is closed. Threads may share it."""

    def __init__(self, path: Path, waiters: Path) -> None:
        """Open the database, or make it, and bring it to this version.

        The directory `waiters` has a FIFO of each process that waits for changes.

        Raises:
            DamagedError: the file is not a store, or a newer Cerne wrote it.
            StorageError: it is not writable.
        """
        self._path = path
        self.waiters = Waiters(waiters)
        self._lock = threading.Lock()
        self._reserve = Reserve(path.with_name("store.reserve"))
        self._only_read = False
        with self._errors():
            try:
                self._open()
            except sqlite3.OperationalError:
                if not self._reserve.is_needed():
                    raise
                # To look takes no room. What a full file system has left is for what frees it.
                self._connection.close()
                self._connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1")
                self._only_read = True

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def rows(
        self, query: str, values: Sequence[Value] | Mapping[str, Value] = ()
    ) -> list[sqlite3.Row]:
        """What a query finds.

        Raises:
            StorageError, DamagedError: the database is unreadable.
        """
        with self._errors(), self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.OperationalError:
                # The tables of a newer version are others.
                self._require_known_version()
                raise

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One change, made at the end of the block, or not at all where the block raises.

        One that is not `durable` does not wait for the disk: a power cut may undo it.

        Raises:
            DamagedError: a newer Cerne has upgraded the store since it was opened.
            StorageError: it is not writable.
        """
        with self._errors(), self._lock:
            self._make_writable()
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._require_known_version()
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self.waiters.wake()

    def _open(self) -> None:
        self._make_private()
        self._connect(self._path.absolute().as_uri())
        version = self._version()
        if version == 0:
            self._connection.execute("PRAGMA journal_mode = WAL")
        if version < VERSION:
            self._upgrade()
        self._require_known_version()

    def _make_private(self) -> None:
        """Make the file for its owner alone, and the others of SQLite, which get its mode.

        A store of an older Cerne was readable by all users.
        """
        # A file that is there is not opened: closing it would free the locks of this process.
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        for name in (self._path.name, f"{self._path.name}-wal", f"{self._path.name}-shm"):
            with contextlib.suppress(OSError):
                self._path.with_name(name).chmod(0o600)

    def _connect(self, address: str) -> None:
        self._connection = sqlite3.connect(
            address, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA foreign_keys = ON")

    def _make_writable(self) -> None:
        """See that there is room for a transaction, and that the database is open for one."""
        self._reserve.make_room()
        if self._only_read:
            self._connection.close()
            self._open()
            self._only_read = False

    def _upgrade(self) -> None:
        self._reserve.make_room()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have done so since the version was read.
            version = self._version()
            if version < VERSION:
                migrate(self._connection, version, self._path.absolute().parent)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _require_known_version(self) -> None:
        """Refuse a store that a newer Cerne has upgraded, even after it was opened here."""
        version = self._version()
        if version > VERSION:
            raise DamagedError(
                f"{self._path} was written by another version of Cerne (store version {version})",
                hint="use that version, or set CERNE_HOME to another directory",
            )

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def _unusable(self, error: sqlite3.OperationalError) -> StorageError:
        """What keeps the store from being used: its file system, or what SQLite says."""
        directory = self._path.absolute().parent
        if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return StorageError(
                f"the disk of {directory} is full, so {self._path.name} takes no change",
                hint=f"free some space: df -h {directory}",
            )
        with contextlib.suppress(OSError):
            if os.statvfs(directory).f_flag & os.ST_RDONLY:
                return StorageError(
                    f"the file system of {directory} is read-only",
                    hint="make it writable, or set CERNE_HOME to another directory",
                )
        return StorageError(
            f"{self._path} is not usable: {error}",
            hint=f"check that {directory} is writable and has space: df -h {directory}",
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.ProgrammingError as error:
            raise StateError(
                "the manager was closed", hint="use it, and its machines, within its with block"
            ) from error
        except sqlite3.IntegrityError as error:
            # The file is sound: a command removed or changed meanwhile what this one needs.
            raise ConflictError(
                f"another command changed what this one needs: {error}", hint="do that again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DamagedError(
                f"{self._path} is damaged: {error}",
                hint=f"move {self._path} away; the machines' disks are beside it",
            ) from error


class Repository:
    """The rows of one noun, over the database that all of them share."""

    def __init__(
        self,
        database: Database,
        require_image: Callable[[str], object],
        host: HostLedger | None = None,
    ) -> None:
        """Look after rows.

        `require_image` refuses, in the transaction that adds what is made of it, an image that is
        gone. `host` is what other homes see of the promises, and where theirs are seen.
        """
        self._database = database
        self._host = host
        self._require_image = require_image
