"""A process in a guest, seen from the host: its streams, its terminal, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Self

from cerne.errors import GuestError, GuestTimeoutError
from cerne.guest import wire
from cerne.guest.session import Session, error_of
from cerne.guest.wire import WINDOW, Frame, FrameType


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
        self._end: ExitStatus | None = None
        self._taken = 0
        # Guards _credit and _input_open.
        self._change = threading.Condition()
        self._credit = WINDOW
        self._input_open = True

    def __iter__(self) -> Iterator[Output]:
        """What the process writes, as it comes, until it ends.

        Raises:
            GuestError: the guest or its agent went away.
        """
        return iter(self.read, None)

    def read(self, timeout: float | None = None) -> Output | None:
        """What it writes next, waited for at most `timeout` seconds; None once it has ended.

        Raises:
            GuestTimeoutError: nothing came in time; it still runs.
            GuestError: the guest or its agent went away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while self._end is None:
                output = self._take(self._session.receive(deadline))
                if output is not None:
                    return output
        except GuestTimeoutError:
            raise
        except GuestError:
            self._close_input()
            raise
        return None

    def write(self, data: bytes) -> None:
        """Write to its standard input; waits while the process does not read.

        Another thread has to iterate meanwhile. After the process's end, or once it has closed
        its input, the data goes nowhere.
        """
        view = memoryview(data)
        while view:
            with self._change:
                self._change.wait_for(lambda: self._credit > 0 or not self._input_open)
                if not self._input_open:
                    return
                length = min(len(view), self._credit, wire.MAX_PAYLOAD)
                self._credit -= length
            self._session.send(FrameType.STDIN, bytes(view[:length]))
            view = view[length:]

    def close_stdin(self) -> None:
        """Let it read the end of its standard input."""
        with self._change:
            was_open, self._input_open = self._input_open, False
        if was_open:
            self._session.send(FrameType.STDIN_END)

    def resize(self, size: TerminalSize) -> None:
        """Tell its terminal a new size; may be called from a signal handler."""
        self._session.send(FrameType.RESIZE, wire.SIZE.pack(size.rows, size.columns))

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group; may be called from a signal handler."""
        self._session.send(FrameType.SIGNAL, wire.COUNT.pack(number))

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Wait for its end, at most `timeout` seconds; what it writes meanwhile is dropped.

        Raises:
            GuestTimeoutError: it has not ended in time; it still runs.
            GuestError: the guest or its agent went away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._end is None:
            self.read(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self._end

    def close(self) -> None:
        """End the session; a process that still runs gets SIGHUP."""
        self._close_input()
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

    def _take(self, frame: Frame) -> Output | None:
        match frame.type:
            case FrameType.STDOUT | FrameType.STDERR:
                self._give_credit(len(frame.payload))
                stream = Stream.STDOUT if frame.type is FrameType.STDOUT else Stream.STDERR
                return Output(stream, frame.payload)
            case FrameType.CREDIT if len(frame.payload) == wire.COUNT.size:
                with self._change:
                    # Never more than the window, whatever the guest says.
                    given = wire.COUNT.unpack(frame.payload)[0]
                    self._credit = min(WINDOW, self._credit + given)
                    self._change.notify_all()
            case FrameType.EXITED if len(frame.payload) == wire.EXITED.size:
                by_signal, number = wire.EXITED.unpack(frame.payload)
                number &= 0xFF
                self._end = ExitStatus(128 + number, number) if by_signal else ExitStatus(number)
                self._close_input()
            case FrameType.ERROR:
                raise error_of(frame.payload)
            case _:
                raise wire.nonsense(f"{frame.type.name} out of turn")
        return None

    def _give_credit(self, length: int) -> None:
        self._taken += length
        if self._taken >= WINDOW // 4:
            self._session.send(FrameType.CREDIT, wire.COUNT.pack(self._taken))
            self._taken = 0

    def _close_input(self) -> None:
        with self._change:
            self._input_open = False
            self._change.notify_all()
