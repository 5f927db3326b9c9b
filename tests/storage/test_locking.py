"""Disks that are not a machine's alone: one writes, or several read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cerne.errors import ConflictError, StorageError
from cerne.storage.locking import lock, require_unlocked

Open = Callable[[], int]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.touch()
    return path


@pytest.fixture
def opened(disk: Path) -> Iterator[Open]:
    """Opens the disk, as another process would."""
    with ExitStack() as stack:

        def make() -> int:
            descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return descriptor

        yield make


def test_one_writes(disk: Path, opened: Open) -> None:
    lock(opened(), disk, writable=True)
    for writable in (True, False):
        with pytest.raises(ConflictError, match="another machine"):
            lock(opened(), disk, writable=writable)
        with pytest.raises(ConflictError):
            require_unlocked(disk, writable=writable)


def test_several_read(disk: Path, opened: Open) -> None:
    for _ in range(2):
        lock(opened(), disk, writable=False)
    require_unlocked(disk, writable=False)
    with pytest.raises(ConflictError, match="used"):
        lock(opened(), disk, writable=True)


def test_a_lock_lasts_as_long_as_whoever_was_sent_the_disk(disk: Path) -> None:
    descriptor = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    lock(descriptor, disk, writable=True)
    sent = os.dup(descriptor)
    os.close(descriptor)
    with pytest.raises(ConflictError):
        require_unlocked(disk, writable=True)
    os.close(sent)
    require_unlocked(disk, writable=True)


def test_a_disk_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="opening the disk"):
        require_unlocked(tmp_path / "none", writable=True)
