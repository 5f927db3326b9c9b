"""The manifest of a saved machine, with which its files are checked before they are loaded.

It is written last: a directory without a manifest is not a saved machine. The state is small and
checked by its digest each time. The memory is large, and a restore maps it without reading it: its
digest is computed again only if the file is not the one that was written (by inode and times).
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
from cerne.units import counted
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
    """The content of a directory in which an engine saved a machine."""

    fingerprint: str
    """`Engine.fingerprint` of the engine that saved it."""
    memory: int
    """Bytes of guest memory."""
    state_digest: str
    memory_digest: str = ""
    """Empty if the memory is in the state's file."""
    memory_stamp: str = ""
    format: int = _FORMAT
    balloon: bool = True
    """Whether the machine had a balloon; a restored machine then has a balloon too."""
    headroom: int = 0
    """Bytes that could be plugged in addition on QEMU, for the same in a restored machine."""
    plugged: int = 0
    """Bytes of the memory that were to be plugged on QEMU."""

    def write(self, directory: Path) -> None:
        """Complete the directory, so that it is a saved machine, even after a power cut.

        Raises:
            StorageError: writing it failed.
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
            raise StorageError(f"{path} is not writable: {error.strerror}") from error

    @classmethod
    def read(cls, directory: Path) -> SavedMachine:
        """Read a manifest that `write` of this Cerne or an older one wrote.

        Raises:
            DamagedError: there is no manifest, or its format is unknown.
        """
        path = directory / MANIFEST_FILE
        try:
            with path.open("rb") as file:
                values = json.loads(file.read(_LARGEST_MANIFEST))
            found = require_format(values["format"], _FORMAT, _UPGRADES, str(directory))
            newest = upgraded(values, found, _FORMAT, _UPGRADES, str(directory))
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise DamagedError(f"{directory} contains no saved machine: {error}") from error
        # The first manifests did not have this field, and all machines had a balloon then.
        # Nor could memory be plugged.
        first = {"balloon": True, "headroom": 0, "plugged": 0}
        saved = SavedState(str(directory), {**first, **newest})
        return cls(
            fingerprint=saved.text("fingerprint", _LONGEST_TEXT),
            memory=saved.integer("memory", _MOST_MEMORY),
            state_digest=saved.text("state_digest", _LONGEST_TEXT),
            memory_digest=saved.text("memory_digest", _LONGEST_TEXT),
            memory_stamp=saved.text("memory_stamp", _LONGEST_TEXT),
            balloon=saved.flag("balloon"),
            headroom=saved.integer("headroom", _MOST_MEMORY),
            plugged=saved.integer("plugged", _MOST_MEMORY),
        )


def check(
    directory: Path,
    restores: Callable[[str], bool],
    memory: int,
    digest_of_memory: Callable[[int], str],
) -> None:
    """Refuse a saved machine that is damaged, or that this host does not restore.

    `digest_of_memory` takes a descriptor; it is called only if the file is not the one that was
    written.

    Raises:
        DamagedError: it is truncated or altered, or belongs to another engine, processor or size.
    """
    saved = SavedMachine.read(directory)
    if not restores(saved.fingerprint):
        raise DamagedError(
            f"{directory} was saved by another engine, or on another kind of processor",
            hint="restore it on the host that saved it, or boot the machine",
        )
    if saved.memory != memory:
        raise DamagedError(
            f"{directory} has {counted(saved.memory, 'byte')} of memory, not {memory}"
        )
    try:
        if file_digest(directory / STATE_FILE) != saved.state_digest:
            raise DamagedError(f"{directory / STATE_FILE} is truncated or was altered")
        path = directory / MEMORY_FILE
        if saved.memory_stamp and stamp(path) != saved.memory_stamp:
            with path.open("rb") as file:
                if digest_of_memory(file.fileno()) != saved.memory_digest:
                    raise DamagedError(f"{path} is truncated or was altered")
    except OSError as error:
        raise DamagedError(f"{directory} is incomplete: {error}") from error


def stamp(path: Path) -> str:
    """A text that changes with a file: its inode, size and times."""
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
