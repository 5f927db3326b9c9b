"""A process in a guest: its streams, its terminal and its exit status."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType
from typing import Self

from cerne.errors import GuestTimeoutError, InputError
from cerne.guest import wire
from cerne.guest.session import Session, error_of
from cerne.guest.wire import MAX_PAYLOAD, WINDOW, Frame, FrameType

_MAX_STATUS = 255
_MAX_SIGNAL = 64
_MAX_SIDE = 65535


class Stream(IntEnum):
    """A stream that a process writes; a process on a terminal has only STDOUT."""

    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal, in characters."""

    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not (0 <= self.rows <= _MAX_SIDE and 0 <= self.columns <= _MAX_SIDE):
            raise InputError(f"{self.rows} by {self.columns} is not a size for a terminal")

    def pack(self) -> bytes:
        """The payload of the frame that announces it."""
        return wire.SIZE.pack(self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a process wrote."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended."""

    status: int
    """Its exit status, or 128 plus the signal's number, as in a shell."""
    signal: int | None = None
    """The signal that ended it, if one did."""


@dataclass(frozen=True, slots=True)
class ExecResult(ExitStatus):
    """How a process ended, and its output."""

    stdout: bytes = b""
    stderr: bytes = b""

    def as_text(self) -> ExecTextResult:
        """The same with the output decoded as UTF-8; invalid bytes become U+FFFD."""
        return ExecTextResult(
            self.status,
            self.signal,
            self.stdout.decode(errors="replace"),
            self.stderr.decode(errors="replace"),
        )


@dataclass(frozen=True, slots=True)
class ExecTextResult(ExitStatus):
    """How a process ended, and its output as text."""

    stdout: str = ""
    stderr: str = ""


class GuestProcess:
    """A process that runs in a guest; iterating over it yields its output until it ends.

    One thread may iterate while another writes. As with a pipe, a process stops if nobody reads its
    output, and then it reads no input. It is a context manager: leaving it ends the session, and
    sends SIGHUP to a process that still runs.
    """

    def __init__(self, session: Session, pid: int) -> None:
        self._session = session
        self.pid = pid
        # Guards all fields below. The thread that needs something receives for all threads.
        self._changed = threading.Condition()
        self._receiving = False
        self._output: deque[Output] = deque()
        self._owed = 0
        self._unread = 0
        self._credit = WINDOW
        self._stdin_open = True
        self._end: ExitStatus | None = None

    def __iter__(self) -> Iterator[Output]:
        """The output of the process, as it comes, until it ends.

        Raises:
            GuestError: the guest or its agent went away.
        """
        while True:
            output = self.read()
            if output is None:
                return
            yield output

    def read(self, timeout: float | None = None) -> Output | None:
        """The next output of the process; None at its end.

        Raises:
            GuestTimeoutError: there is no output in `timeout` seconds.
            GuestError: the guest or its agent went away.
        """
        self._wait_until(lambda: bool(self._output) or self._end is not None, timeout)
        with self._changed:
            if not self._output:
                return None
            output = self._output.popleft()
            self._unread -= len(output.data)
            self._owed += len(output.data)
            if self._owed < WINDOW // 4 or self._end is not None:
                return output
            owed, self._owed = self._owed, 0
        self._session.send(FrameType.CREDIT, wire.COUNT.pack(owed))
        return output

    def write(self, data: bytes) -> None:
        """Write to its standard input; wait while the process does not read.

        After the process has ended or closed its input, the data is dropped.

        Raises:
            GuestError: the guest or its agent went away.
        """
        view = memoryview(data)
        while view:
            self._wait_until(lambda: self._credit > 0 or self._end is not None, None)
            with self._changed:
                if self._end is not None:
                    return
                size = min(self._credit, MAX_PAYLOAD, len(view))
                self._credit -= size
            self._session.send(FrameType.STDIN, bytes(view[:size]))
            view = view[size:]

    @property
    def has_ended(self) -> bool:
        """Whether the end of the process was received."""
        with self._changed:
            return self._end is not None

    def close_stdin(self) -> None:
        """Close its standard input."""
        with self._changed:
            is_open, self._stdin_open = self._stdin_open, False
        if is_open:
            self._session.send(FrameType.STDIN_END)

    def resize(self, size: TerminalSize) -> None:
        """Set the size of its terminal; may be called from a signal handler."""
        self._session.send_urgent(FrameType.RESIZE, size.pack())

    def signal(self, number: int) -> None:
        """Send a signal to the process and its group; may be called from a signal handler."""
        self._session.send_urgent(FrameType.SIGNAL, wire.COUNT.pack(number))

    def wait(self, timeout: float | None = None) -> ExitStatus:
        """Wait for its end, at most `timeout` seconds; drop its output meanwhile.

        Raises:
            GuestTimeoutError: it has not ended in time; it still runs.
            GuestError: the guest or its agent went away.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.read(_left(deadline)) is not None:
            if _left(deadline) == 0:
                raise _silent()
        with self._changed:
            if self._end is None:
                raise wire.nonsense("the end of a process without its status")
            return self._end

    def close(self) -> None:
        """End the session; a process that still runs gets SIGHUP."""
        self._session.close()
        with self._changed:
            self._changed.notify_all()

    def _wait_until(self, ready: Callable[[], bool], timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            looked = False
            while not ready():
                # A guest may send frames for ever that are not what is waited for.
                if looked and _left(deadline) == 0:
                    raise _silent()
                looked = True
                if not self._receiving:
                    self._receive(deadline)
                elif not self._changed.wait(_left(deadline)):
                    raise _silent()

    def _receive(self, deadline: float | None) -> None:
        """Receive one frame, without blocking threads that only look."""
        self._receiving = True
        self._changed.release()
        try:
            frame = self._session.receive(_left(deadline))
        except GuestTimeoutError as error:
            raise _silent() from error
        finally:
            self._changed.acquire()
            self._receiving = False
            self._changed.notify_all()
        self._take(frame)

    def _take(self, frame: Frame) -> None:
        payload = frame.payload
        match frame.type:
            case FrameType.STDOUT | FrameType.STDERR:
                self._take_output(frame)
            case FrameType.CREDIT if len(payload) == wire.COUNT.size:
                self._credit = min(WINDOW, self._credit + wire.COUNT.unpack(payload)[0])
            case FrameType.EXITED if len(payload) == wire.EXITED.size:
                self._end = _exit_status(*wire.EXITED.unpack(payload))
            case FrameType.ERROR:
                raise error_of(payload)
            case _:
                raise wire.nonsense(f"{frame.type.name} from a process that runs")

    def _take_output(self, frame: Frame) -> None:
        if not frame.payload:
            # An empty frame takes no credit, so that a guest could send any number.
            return
        self._unread += len(frame.payload)
        if self._unread + self._owed > WINDOW:
            raise wire.nonsense("more output than its credit")
        stream = Stream.STDOUT if frame.type is FrameType.STDOUT else Stream.STDERR
        self._output.append(Output(stream, frame.payload))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _silent() -> GuestTimeoutError:
    return GuestTimeoutError("the process in the guest wrote nothing in time, and still runs")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _exit_status(by_signal: int, code: int) -> ExitStatus:
    if by_signal == 0 and code <= _MAX_STATUS:
        return ExitStatus(code)
    if by_signal == 1 and 0 < code <= _MAX_SIGNAL:
        return ExitStatus(128 + code, code)
    raise wire.nonsense("an exit status that is not valid")
