"""What the homes of this host have promised to their machines, where each home sees it.

Root makes ``/run/cerne-ledger``. In it each home has a directory of its own, which all users may
read, with a file for each machine that runs: what is promised to it, and its process. The file
counts as long as that process runs; before it has one, as long as the command that starts it runs.
So it is true after any crash, and no program has to clean up.

Root's homes are in ``root``, those of other users in ``users``, where anybody may make a directory,
as in /tmp. Files there are hostile: their owner, type and size are checked, they count only with a
process of their owner, those of one user at most for a quarter of what the host has, and together
at most for half of it (`cerne.manager.store.promises`). Each user may have some homes; who makes
more, or what bears another user's name, hides and delays nothing.

To promise something, a command publishes it first, and then reads what the others have published,
so that of two commands at once at least one sees the other. A lock of each user's homes (flock(2))
lets them do so in turn.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import pwd
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cerne.host.process import ProcessIdentity, boot_id

DIRECTORY_VARIABLE = "CERNE_LEDGER"
"""The environment's variable with another directory than `_DIRECTORY`."""

_DIRECTORY = Path("/run/cerne-ledger")
_ROOT = 0
_LARGEST_FILE = 4096
_LARGEST_AMOUNT = 1 << 60
_LONGEST_NAME = 64
_MOST_HOMES = 64
"""Homes of one user."""
_MOST_NAMES = 1 << 14
_MOST_OF_HOME = 10_000
_MOST_OF_USER = 1000
_PATIENCE = 5.0
"""Seconds for the turn of another home; what is published first holds without a turn too."""
_MOMENT = 0.005

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """What is promised to one machine while it runs."""

    name: str
    cpu: int
    """Thousandths of a CPU."""
    memory: int
    """Bytes."""
    process: ProcessIdentity | None
    """Its process; None as long as a command starts it."""
    home: str = ""
    """The home's directory."""
    user: int = _ROOT
    """The id of the home's user."""

    @property
    def trusted(self) -> bool:
        """Whether root or this user has promised it."""
        return self.user in (_ROOT, os.geteuid())

    @property
    def user_name(self) -> str:
        """The name of the home's user, or the id of one without a name."""
        try:
            return pwd.getpwuid(self.user).pw_name
        except KeyError:
            return str(self.user)


class HostLedger:
    """The ledger of the host, as one home sees it."""

    def __init__(self, home: Path, machines_runtime: Path, directory: Path | None = None) -> None:
        """Take the home's directory, and the directory of its machines' runtime directories."""
        moved = os.environ.get(DIRECTORY_VARIABLE)
        self._base = directory or (Path(moved) if moved else _DIRECTORY)
        self._home = str(home.resolve())
        self._runtime = str(machines_runtime)
        self._why: str | None = None
        # The import of hashlib takes longer than the rest of a command that only looks.
        status = home.stat()
        key = f"{status.st_dev:x}-{status.st_ino:x}"
        root = os.geteuid() == _ROOT
        self._lock = self._base / "lock" if root else self._base / "users" / f"{os.geteuid()}.lock"
        self._own = self._base / ("root" if root else "users") / f"{os.geteuid()}-{key}"

    @property
    def why_not(self) -> str:
        """Why other homes do not see what this home promises; empty if they do."""
        if self._why is None:
            self._why = self._join()
        return self._why

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let no other home of this user promise anything in this block."""
        if self.why_not:
            yield
            return
        try:
            descriptor = os.open(
                self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            _log.debug("the lock of the host's ledger is not usable: %s", error)
            yield
            return
        try:
            # Another user may have made it, and would keep us waiting.
            if os.fstat(descriptor).st_uid == os.geteuid():
                _wait_for(descriptor)
            yield
        finally:
            os.close(descriptor)

    def publish(self, machine_id: str, entry: Published) -> None:
        """Show what is promised to a machine, in place of what was shown before."""
        if self.why_not:
            return
        command = ProcessIdentity.of(os.getpid())
        text = json.dumps(
            {
                "name": entry.name,
                "cpu": entry.cpu,
                "memory": entry.memory,
                "home": self._home,
                "runtime": f"{self._runtime}/{machine_id}",
                "boot": boot_id(),
                "command": _identity(command),
                "process": _identity(entry.process),
            }
        )
        try:
            try:
                self._write(machine_id, text)
            except FileNotFoundError:
                # Another command has just withdrawn the last promise of this home.
                with contextlib.suppress(FileExistsError):
                    self._own.mkdir(mode=0o755)
                self._write(machine_id, text)
        except OSError as error:
            # The home's own ledger holds in any case.
            _log.warning("the host's ledger is not writable: %s", error)
            self._why = f"writing to {self._own} failed: {error.strerror}"

    def published(self, machine_id: str) -> bool:
        """Whether other homes see what is promised to a machine, if they see this home at all."""
        return bool(self.why_not) or (self._own / machine_id).exists()

    def withdraw(self, machine_id: str) -> None:
        """Show nothing of a machine any more."""
        with contextlib.suppress(OSError):
            (self._own / machine_id).unlink(missing_ok=True)
            # A command that was killed while it wrote.
            for left in self._own.glob(f".{machine_id}.*"):
                left.unlink(missing_ok=True)
            # A home may be gone for good after that.
            self._own.rmdir()

    def others(self) -> list[Published]:
        """What is promised to machines of other homes that run, or are being started."""
        found: list[Published] = []
        for place in ("root", "users"):
            found += self._in(self._base / place, of_root=place == "root")
        return found

    def _in(self, directory: Path, *, of_root: bool) -> Iterator[Published]:
        counts: dict[int, int] = {}
        try:
            names = _names(directory) if of_root else _names_of_users(directory)
        except OSError:
            return
        for name in names:
            if directory / name == self._own:
                continue
            with contextlib.suppress(OSError), _opened_directory(directory / name) as descriptor:
                user = os.fstat(descriptor).st_uid
                if of_root != (user == _ROOT):
                    continue
                left = _MOST_OF_HOME if of_root else _MOST_OF_USER - counts.get(user, 0)
                for entry in _entries(descriptor, user, left):
                    counts[user] = counts.get(user, 0) + 1
                    yield entry

    def _write(self, machine_id: str, text: str) -> None:
        fresh = self._own / f".{machine_id}.{os.getpid()}"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o644)
            file.write(text)
        fresh.rename(self._own / machine_id)

    def _join(self) -> str:
        """Make this home's directory; return why that is not possible."""
        root = os.geteuid() == _ROOT
        try:
            if root:
                _make(self._base, 0o755)
                _make(self._base / "root", 0o755)
                _make(self._base / "users", 0o1777)
            elif not self._base.exists():
                return f"root has not used Cerne on this host, and {self._base} is missing"
            for path in (self._base, self._base / "root", self._base / "users"):
                _require_of_root(path)
            with contextlib.suppress(FileExistsError):
                self._own.mkdir(mode=0o755)
            status = self._own.lstat()
        except OSError as error:
            return f"{error.filename} is not usable: {error.strerror}"
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return f"{self._own} belongs to another user"
        return ""


def _make(path: Path, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    # A command may have been killed before this.
    status = path.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
    if ours and stat.S_IMODE(status.st_mode) != mode:
        path.chmod(mode)


def _require_of_root(path: Path) -> None:
    """Refuse a directory that another user than root may change.

    Raises:
        OSError: it is one.
    """
    status = path.lstat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    shared = path.name == "users" and status.st_mode & stat.S_ISVTX
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != _ROOT or (writable and not shared):
        raise OSError(0, "another user than root may change it", str(path))


def _names(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:
        return [each.name for each in entries]


def _names_of_users(directory: Path) -> list[str]:
    """The homes of users, without what is too much of one user."""
    counts: dict[int, int] = {}
    names = []
    with os.scandir(directory) as entries:
        for each in islice(entries, _MOST_NAMES):
            with contextlib.suppress(OSError):
                user = each.stat(follow_symlinks=False).st_uid
                if each.is_dir(follow_symlinks=False) and counts.get(user, 0) < _MOST_HOMES:
                    counts[user] = counts.get(user, 0) + 1
                    names.append(each.name)
    return names


def _wait_for(descriptor: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_MOMENT)


@contextlib.contextmanager
def _opened_directory(path: Path) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _entries(directory: int, user: int, most: int) -> Iterator[Published]:
    """What the valid files of a home's directory say."""
    with os.scandir(directory) as entries:
        names = [each.name for each in islice(entries, max(0, most))]
    for name in names:
        if name.startswith("."):
            continue
        with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            entry = _entry(_read(directory, name, user), user)
            if entry is not None:
                yield entry


def _read(directory: int, name: str, user: int) -> bytes:
    """The text of a file.

    Raises:
        OSError, ValueError: it is not readable, or not a file of this user, or too large.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != user:
            raise ValueError(f"{name} is not a file of user {user}")
        text = os.read(descriptor, _LARGEST_FILE + 1)
    finally:
        os.close(descriptor)
    if len(text) > _LARGEST_FILE:
        raise ValueError(f"{name} is too large")
    return text


def _entry(text: bytes, user: int) -> Published | None:
    """What a file says, if it counts.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it has another form.
    """
    said = json.loads(text)
    entry = Published(
        name=_text(said["name"], _LONGEST_NAME),
        cpu=_amount(said["cpu"]),
        memory=_amount(said["memory"]),
        process=_process(said["process"], said["boot"]),
        home=_text(said["home"], _LARGEST_FILE),
        user=user,
    )
    command = _process(said["command"], said["boot"])
    runtime = Path(_text(said["runtime"], _LARGEST_FILE))
    return entry if _counts(entry, command, runtime) else None


def _counts(entry: Published, command: ProcessIdentity | None, runtime: Path) -> bool:
    """Whether the machine runs, or is being started."""
    if entry.process is not None:
        return _runs(entry.process, entry)
    if command is not None and _runs(command, entry):
        return True
    if not entry.trusted:
        return False
    # The command was killed, perhaps after it had started the machine's process.
    try:
        runtime.parent.stat()
    except PermissionError:
        # Another user's command may not see it: what may be promised counts.
        return True
    from cerne.host.members import Members

    return bool(Members(runtime).alive())


def _runs(process: ProcessIdentity, entry: Published) -> bool:
    return process.alive() and (entry.trusted or process.user() == entry.user)


def _identity(process: ProcessIdentity | None) -> list[int] | None:
    return None if process is None else [process.pid, process.start_time]


def _process(said: object, boot: object) -> ProcessIdentity | None:
    if said is None:
        return None
    if not isinstance(said, list) or len(said) != 2 or not isinstance(boot, str):
        raise ValueError("a process has a pid and a start time")
    return ProcessIdentity(_amount(said[0]), _amount(said[1]), boot)


def _amount(said: object) -> int:
    if not isinstance(said, int) or isinstance(said, bool) or not 0 <= said < _LARGEST_AMOUNT:
        raise ValueError(f"{said!r} is not an amount")
    return said


def _text(said: object, longest: int) -> str:
    # Others wrote it, and it is shown on root's terminal.
    if not isinstance(said, str) or len(said) > longest or not said.isprintable():
        raise ValueError("a text is missing, too long, or not printable")
    return said
