"""A process in a guest, seen from the host: its streams, its terminal, its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Self

from cerne.guest.session import Session


class Stream(IntEnum):
    """A stream that a process writes; a process on a terminal has STDOUT alone."""

    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal, in characters."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a process wrote."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended."""

    status: int
    """Its exit status, or 128 and the signal's number, as a shell has it."""
    signal: int | None = None
    """The signal that ended it, if one did."""


@dataclass(frozen=True, slots=True)
class ExecResult(ExitStatus):
    """How a process ended, and what it wrote."""

    stdout: bytes = b""
    stderr: bytes = b""


class GuestProcess:
    """A process that runs in a guest; iterate over it for what it writes, until it ends.

    One thread may iterate while another writes. A context manager: leaving it ends the session,
    and with it (by SIGHUP) a process that still runs.
    """

    def __init__(self, session: Session, pid: int) -> None:
        self._session = session
        self.pid = pid

    def __iter__(self) -> Iterator[Output]:
        """What the process writes, as it comes, until it ends.

        Raises:
            GuestError: the guest or its agent went away.
        """
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Write to its standard input; waits while the process does not read.

        After the process's end, or once it has closed its input, the data goes nowhere.
        """
        raise NotImplementedError

    def close_stdin(self) -> None:
        """Let it read the end of its standard input."""
        raise NotImplementedError

    def resize(self, size: TerminalSize) -> None:
        """Tell its terminal a new size; may be called from a signal handler."""
        raise NotImplementedError

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group; may be called from a signal handler."""
        raise NotImplementedError

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Wait for its end, at most `timeout` seconds; what it writes meanwhile is dropped.

        Raises:
            GuestTimeoutError: it has not ended in time; it still runs.
            GuestError: the guest or its agent went away.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the session; a process that still runs gets SIGHUP."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
