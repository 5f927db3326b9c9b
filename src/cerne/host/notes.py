"""Notes about the processes that serve a machine, for the next command.

Only the manager writes to the store. A supervisor of such a process runs without a manager, so it
notes the end of the process in the machine's runtime directory. It may be in the hands of a guest
that broke out of its devices: what it wrote is read up to a limit, and may be anything.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

# As in typing, whose import takes longer than this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 2000
_MOST = 50
"""Notes that are read at once; those after them are lost."""
_MOST_BYTES = 64 * 1024


class Notes:
    """The notes of one machine; any process may add one."""

    def __init__(self, runtime: Path) -> None:
        self._file = runtime / "notes"

    def add(self, words: str) -> None:
        """Add a note of one sentence.

        Raises:
            OSError: the file is not writable.
        """
        file = self.open()
        try:
            add_note(file, words)
        finally:
            os.close(file)

    def open(self) -> int:
        """Open them for `add_note`, for a process that may not open them later.

        Raises:
            OSError: the file is not writable.
        """
        return os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

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
        file = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            data = os.pread(file, _MOST_BYTES, 0)
            yield [words for line in data.splitlines()[:_MOST] for words in _words(line)]
            os.ftruncate(file, 0)
        finally:
            os.close(file)


def add_note(file: int, words: str) -> None:
    """Add a note of one sentence to open notes.

    Raises:
        OSError: the file is not writable.
    """
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        os.write(file, _quoted(words[:_LONGEST]).encode() + b"\n")
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _quoted(words: str) -> str:
    """A string of JSON (RFC 8259), without json, whose import makes a supervisor's start longer."""
    escaped = words.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(each if each.isprintable() else _code(each) for each in escaped) + '"'


def _code(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x1_0000 else "\N{REPLACEMENT CHARACTER}"


def _words(line: bytes) -> list[str]:
    import json

    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        # The writer of the last note was killed.
        return []
    # Half of a surrogate pair is no text.
    return [said.encode(errors="replace").decode()[:_LONGEST]] if isinstance(said, str) else []
