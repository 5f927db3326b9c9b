"""The manifest of a saved machine: what its files are, so that none is loaded that is not whole.

It is written last: a directory without one is no saved machine. The state is small and checked by
its digest each time. The memory is large, and a restore maps it without reading it: its digest is
only taken again where the file is not the very one that was written (by inode and times).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cerne.devices.state import SavedState
from cerne.errors import DamagedError, StorageError
from cerne.upgrades import Upgrades, require_format, upgraded

MANIFEST_FILE = "manifest.json"
STATE_FILE = "state"
MEMORY_FILE = "memory"
_FORMAT = 1
_UPGRADES: Upgrades = {}
"""From each older format of the manifest the function that makes the next one of it."""
_LARGEST_MANIFEST = 64 << 10
_LONGEST_TEXT = 1024
_MOST_MEMORY = 1 << 52


@dataclass(frozen=True, slots=True)
class SavedMachine:
    """What is in a directory that an engine saved a machine in."""

    fingerprint: str
    """`Engine.fingerprint` of the engine that saved it."""
    memory: int
    """Bytes of guest memory."""
    state_digest: str
    memory_digest: str = ""
    """Empty where the memory is in the state's file."""
    memory_stamp: str = ""
    format: int = _FORMAT
    balloon: bool = True
    """Whether the machine had a balloon; one that goes on from it has none then either."""

    def write(self, directory: Path) -> None:
        """Complete the directory: from now on it is a saved machine, even after a power cut.

        Raises:
            StorageError: it cannot be written.
        """
        path = directory / MANIFEST_FILE
        fresh = path.with_suffix(".new")
        try:
            with fresh.open("w") as file:
                json.dump(asdict(self), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(path)
            _sync_directory(directory)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def read(cls, directory: Path) -> SavedMachine:
        """Read what `write` wrote, with this Cerne or an older one.

        Raises:
            DamagedError: there is none, or it is of an unknown format.
        """
        path = directory / MANIFEST_FILE
        try:
            with path.open("rb") as file:
                values = json.loads(file.read(_LARGEST_MANIFEST))
            found = require_format(values["format"], _FORMAT, _UPGRADES, str(directory))
            newest = upgraded(values, found, _FORMAT, _UPGRADES, str(directory))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedError(f"{directory} holds no saved machine: {error}") from error
        # The first manifests did not name the balloon, which all machines had then.
        saved = SavedState(str(directory), {"balloon": True, **newest})
        return cls(
            fingerprint=saved.text("fingerprint", _LONGEST_TEXT),
            memory=saved.integer("memory", _MOST_MEMORY),
            state_digest=saved.text("state_digest", _LONGEST_TEXT),
            memory_digest=saved.text("memory_digest", _LONGEST_TEXT),
            memory_stamp=saved.text("memory_stamp", _LONGEST_TEXT),
            balloon=saved.flag("balloon"),
        )


def check(
    directory: Path,
    restores: Callable[[str], bool],
    memory: int,
    digest_of_memory: Callable[[int], str],
) -> None:
    """Refuse a saved machine that is not whole, or that this host cannot go on with.

    `digest_of_memory` takes a descriptor; it is called only where the file is not the one that was
    written.

    Raises:
        DamagedError: it is truncated or altered, or of another engine, processor or size.
    """
    saved = SavedMachine.read(directory)
    if not restores(saved.fingerprint):
        raise DamagedError(
            f"{directory} was saved by another engine, or on another kind of processor",
            hint="restore it where it was saved, or boot the machine anew",
        )
    if saved.memory != memory:
        raise DamagedError(f"{directory} has {saved.memory} bytes of memory, not {memory}")
    try:
        if file_digest(directory / STATE_FILE) != saved.state_digest:
            raise DamagedError(f"{directory / STATE_FILE} is truncated or was altered")
        path = directory / MEMORY_FILE
        if saved.memory_stamp and stamp(path) != saved.memory_stamp:
            with path.open("rb") as file:
                if digest_of_memory(file.fileno()) != saved.memory_digest:
                    raise DamagedError(f"{path} is truncated or was altered")
    except OSError as error:
        raise DamagedError(f"{directory} is not whole: {error}") from error


def stamp(path: Path) -> str:
    """What changes whenever a file does: its inode, size and times."""
    status = path.stat()
    return f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
