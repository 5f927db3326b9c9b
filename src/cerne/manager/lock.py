"""One operation at a time on a machine, across processes, by flock(2).

The kernel frees the lock when its holder dies. What the holder is doing is
written into the lock's file, so that a command that waits can say what it waits for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cerne.errors import BusyError

PATIENCE = 30.0
"""Seconds that an operation waits for another one on the same machine."""

_POLL = 0.02


@contextlib.contextmanager
def held(path: Path, operation: str, machine: str, patience: float | None = None) -> Iterator[None]:
    """Hold a machine's lock for an operation such as ``start``.

    Raises:
        BusyError: another operation still holds it after `patience` seconds (`PATIENCE`).
    """
    deadline = time.monotonic() + (PATIENCE if patience is None else patience)
    descriptor = _open(path)
    try:
        while not _taken(descriptor) or not _is_at(descriptor, path):
            if not _is_at(descriptor, path):
                # Its holder has removed it, so the file that we have locked is obsolete.
                os.close(descriptor)
                descriptor = _open(path)
                continue
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{machine} is busy: {_holder(descriptor)}",
                    hint="try again when that is done",
                    machine=machine,
                )
            time.sleep(_POLL)
        # On a full file system the holder's name is lost, but the lock is held.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{operation} by process {os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def remove_unheld(path: Path) -> None:
    """Remove a lock's file, unless an operation holds it; waiting operations make a new one."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if _taken(descriptor) and _is_at(descriptor, path):
            path.unlink()
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether an operation holds this lock right now."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _taken(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace") or "another operation"
