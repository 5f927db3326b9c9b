"""Makes and checks, by descriptor, directories below one where all users may write (``/tmp``).

Each directory of the path is opened from the one above it, without following a symbolic link
(openat(2)), and what was opened is checked. No other user can replace a directory whose path
passes, so that it may be used by its path from then on.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from cerne.errors import HostError, StorageError

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OPEN = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def require_private(directory: Path, above: Path) -> None:
    """Make a directory somewhere below `above`; refuse it if another user could change it.

    The directories between the two are made and checked in the same way.

    Raises:
        HostError: another user made one of them, or may write to it or replace it.
        StorageError: making one failed.
    """
    with contextlib.ExitStack() as opened:
        descriptor = os.open("/", _OPEN)
        opened.callback(os.close, descriptor)
        path = Path("/")
        for part in above.resolve().parts[1:]:
            path /= part
            descriptor = _entered(descriptor, part, path)
            opened.callback(os.close, descriptor)
            _require_kept(descriptor, path)
        for part in directory.relative_to(above).parts:
            path /= part
            _make(descriptor, part, path)
            descriptor = _entered(descriptor, part, path)
            opened.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or status.st_mode & _WRITABLE_BY_OTHERS:
                raise _unsafe(path)


def _make(above: int, name: str, path: Path) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=above)
    except FileExistsError:
        return
    except OSError as error:
        raise StorageError(
            f"making {path} failed: {error.strerror}",
            hint="free some space, or set CERNE_HOME to a directory that you may write to",
        ) from error


def _entered(above: int, name: str, path: Path) -> int:
    try:
        return os.open(name, _OPEN, dir_fd=above)
    except OSError as error:
        raise _unsafe(path) from error


def _require_kept(descriptor: int, path: Path) -> None:
    """Refuse a directory in which another user than root may rename what is ours."""
    status = os.fstat(descriptor)
    writable = status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & stat.S_ISVTX
    if status.st_uid not in (0, os.geteuid()) or writable:
        raise _unsafe(path)


def _unsafe(path: Path) -> HostError:
    return HostError(
        f"{path} is not a directory that only you may change",
        hint="set XDG_RUNTIME_DIR or CERNE_HOME to a directory of your own",
    )
