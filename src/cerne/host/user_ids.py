"""A user id for each running machine, which no other machine's processes have.

For root only. The ids need no entry in /etc/passwd. A machine's id is leased by a lock (flock(2))
on a file of this host, whatever home the machine is in; the machine's processes keep the file open,
and the lock ends with the last of them, however they end. A process that is in an attacker's hands
may give the lock back: an id that any process of this host has is not leased again. No file of the
host belongs to such an id, so that a later machine finds nothing of an earlier one.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from cerne.errors import ConflictError, HostError, InputError

RANGE_VARIABLE = "CERNE_USER_IDS"
"""The environment's variable with the range, as ``FIRST-LAST``."""

# Above the ids that systemd gives to users and containers (systemd.io/UIDS-GIDS).
_DEFAULT = range(0x7000_0000, 0x7001_0000)
_DIRECTORY = Path("/run/cerne/user-ids")
_LARGEST = (1 << 32) - 2
_SMALLEST = 1


class Lease(NamedTuple):
    """The user id of one machine."""

    user: int
    descriptor: int
    """The locked file, which the machine's processes keep open."""


def take(directory: Path = _DIRECTORY) -> Lease | None:
    """Lease the first user id of the range that no machine has; the caller closes the descriptor.

    None if this process is not root, or if its user namespace does not have the range.

    Raises:
        InputError: the range in the environment is not valid.
        ConflictError: all ids of the range are taken.
        HostError: locking failed.
    """
    ids = _range()
    if os.geteuid() != 0 or not _mapped(ids):
        return None
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for user in ids:
            descriptor = _locked(directory / str(user))
            if descriptor is None:
                continue
            if not _has_processes(user):
                return Lease(user, descriptor)
            os.close(descriptor)
    except OSError as error:
        raise HostError(f"taking a user id in {directory} failed: {error.strerror}") from error
    raise ConflictError(
        f"all {len(ids)} user ids of machines are taken",
        hint=f"set a larger range: {RANGE_VARIABLE}=FIRST-LAST",
    )


def has_range(root: Path = Path("/")) -> bool:
    """Whether this process's user namespace has the range; `root` is the directory to read from.

    Raises:
        InputError: the range in the environment is not valid.
    """
    return _mapped(_range(), root)


def _locked(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _has_processes(user: int) -> bool:
    try:
        os.getpriority(os.PRIO_USER, user)
    except ProcessLookupError:
        return False
    return True


def _range() -> range:
    text = os.environ.get(RANGE_VARIABLE)
    if text is None:
        return _DEFAULT
    first, _, last = text.partition("-")
    if first.isdecimal() and last.isdecimal() and _SMALLEST <= int(first) <= int(last) <= _LARGEST:
        return range(int(first), int(last) + 1)
    raise InputError(
        f"{RANGE_VARIABLE}={text!r} is not a range of user ids",
        hint=f"write the first and the last: {RANGE_VARIABLE}={_DEFAULT[0]}-{_DEFAULT[-1]}",
    )


def _mapped(ids: range, root: Path = Path("/")) -> bool:
    """Whether this process's user namespace has all of these ids (user_namespaces(7))."""
    for name in ("uid_map", "gid_map"):
        lines = (root / "proc/self" / name).read_text().splitlines()
        inside = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
        if not any(first <= ids[0] and ids[-1] < first + count for first, count in inside):
            return False
    return True
