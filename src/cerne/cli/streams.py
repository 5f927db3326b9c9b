"""This process's standard streams: they may be closed, full, or lead to a reader that has gone.

A command calls `prepare` first. Afterwards descriptors 0, 1 and 2 are open, so that no socket and
no database becomes one of them, and each failure of a stream is handled in one way: a reader that
has gone ends the command silently, as SIGPIPE ends other programs; any other failure is a
`StreamError`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from cerne.errors import StreamError

if TYPE_CHECKING:
    from typing_extensions import Buffer

READER_GONE = 141
"""The exit status if the reader of stdout has gone, as in shells: 128 plus SIGPIPE."""

_CHUNK = 65536
_NAMES = ("standard input", "standard output", "standard error")


def prepare() -> None:
    """Open /dev/null in place of closed streams, and handle failures of all three streams."""
    _open_closed()
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it lasts as long as the process
    sys.stdout = _text(_Output(1), sys.stdout)
    sys.stderr = _text(_Messages(2), sys.stderr)


def write_all(descriptor: int, data: Buffer) -> None:
    """Write all of the data, in as many parts as the descriptor takes.

    Raises:
        SystemExit: the reader has gone.
        StreamError: writing failed for another reason.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
        except BrokenPipeError as error:
            raise SystemExit(READER_GONE) from error
        except OSError as error:
            raise _failed(descriptor, error) from error


def read_some(descriptor: int) -> bytes:
    """The next bytes of a readable descriptor; empty at its end.

    Raises:
        StreamError: it fails.
    """
    while True:
        try:
            return os.read(descriptor, _CHUNK)
        except BlockingIOError:
            select.select([descriptor], [], [])
        except OSError as error:
            raise _failed(descriptor, error) from error


class _Output(io.FileIO):
    """A stream whose first failure ends the command; later output is dropped.

    The interpreter flushes its streams again at its end, and would report the failure again.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self._dropping = False

    def write(self, data: Buffer, /) -> int:
        if not self._dropping:
            try:
                write_all(self.fileno(), data)
            except (SystemExit, StreamError):
                self._dropping = True
                raise
        return memoryview(data).nbytes


class _Messages(_Output):
    """Standard error: a message that is lost must not change the result of the command."""

    def write(self, data: Buffer, /) -> int:
        with contextlib.suppress(SystemExit, StreamError):
            super().write(data)
        return memoryview(data).nbytes


def _open_closed() -> None:
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free descriptor is this one: those before it are open.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _text(raw: _Output, before: TextIO | None) -> TextIO:
    """A text stream like the interpreter's own, which also writes text that has no encoding."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else None,
        errors="backslashreplace",
        line_buffering=raw.isatty() or isinstance(raw, _Messages),
    )


def _failed(descriptor: int, error: OSError) -> StreamError:
    name = _NAMES[descriptor] if descriptor < len(_NAMES) else "a stream"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StreamError(
        f"{name} failed: {error.strerror}",
        hint="free some space there, or write elsewhere" if full else "",
    )
