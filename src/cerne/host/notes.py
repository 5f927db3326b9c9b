"""Notes about the processes that serve a machine, for the next command.

Only the manager writes to the store. A supervisor of such a process runs without a manager, so it
notes the end of the process in the machine's runtime directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

_LONGEST = 2000


class Notes:
    """The notes of one machine; any process may add one."""

    def __init__(self, runtime: Path) -> None:
        self._file = runtime / "notes"

    def add(self, words: str) -> None:
        """Add a note of one sentence.

        Raises:
            OSError: the file is not writable.
        """
        with _locked(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            os.write(file, json.dumps(words[:_LONGEST]).encode() + b"\n")

    @contextlib.contextmanager
    def taken(self) -> Iterator[list[str]]:
        """The notes; they are removed at the end of the block, unless the block fails."""
        try:
            if not self._file.stat().st_size:
                yield []
                return
        except FileNotFoundError:
            yield []
            return
        with _locked(self._file, os.O_RDWR) as file:
            data = os.pread(file, os.fstat(file).st_size, 0)
            yield [words for line in data.splitlines() for words in _words(line)]
            os.ftruncate(file, 0)


def _words(line: bytes) -> list[str]:
    try:
        said = json.loads(line)
    except ValueError:
        # The writer of the last note was killed.
        return []
    return [said] if isinstance(said, str) else []


@contextlib.contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    file = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)
