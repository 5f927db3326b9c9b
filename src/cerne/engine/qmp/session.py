"""One QMP session, synchronous (QEMU Machine Protocol, ``docs/interop/qmp-spec``).

Code of our own: the library qemu.qmp is made for asyncio, and to load both takes 40 ms of each
command that speaks to a machine. A message is a JSON object on a line. The other process may be
damaged or hostile: what it sends is checked, and each wait has a deadline that no message extends.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cerne.errors import EngineError, NotAnsweringError
from cerne.vmm.descriptors import DESCRIPTORS_AT_ONCE

_SHOWN = 200
_LOOK = 0.5
"""Seconds between looks at whether the other process is stopped."""
_LONGEST = 10 << 20
"""Bytes of a message."""
_CHUNK = 1 << 16

Message = dict[str, object]


class QmpCommandError(EngineError):
    """The machine refused a command; `error_class` is the QMP class of the error."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        super().__init__(f"the machine refused {command}: {description}")
        self.command = command
        self.error_class = error_class


class QmpTimeoutError(NotAnsweringError):
    """The machine's process did not answer in time."""


class QmpClosedError(EngineError):
    """The machine's process closed the connection."""


@dataclass(frozen=True, slots=True)
class QmpEvent:
    """An event that the machine's process reported."""

    name: str
    """The name in the specification, such as ``SHUTDOWN``."""
    data: Mapping[str, object]
    time: float
    """Seconds since the epoch."""


class Session:
    """A connected socket, after the greeting. Closes the socket if the greeting fails."""

    def __init__(
        self, connection: socket.socket, timeout: float, stopped: Callable[[], bool]
    ) -> None:
        self._stopped = stopped
        self._connection = connection
        self._received = bytearray()
        self._events: deque[Message] = deque()
        self._last_id = 0
        connection.setblocking(False)
        try:
            self._negotiate(_Limit(timeout))
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        timeout: float | None,
        descriptors: Sequence[int] = (),
    ) -> object:
        """Run a command, with descriptors sent before it, and return its value."""
        return self._command(command, arguments, _Limit(timeout), descriptors)

    def events(self) -> tuple[QmpEvent, ...]:
        """The events that have come since the last call."""
        with contextlib.suppress(QmpClosedError):
            while (message := self._buffered()) is not None or self._read():
                if message is not None:
                    self._keep_event(message)
        found, self._events = self._events, deque()
        return tuple(_event(message) for message in found)

    def wait_event(self, names: frozenset[str], timeout: float | None) -> QmpEvent:
        """Wait for an event of one of these names, dropping others."""
        limit = _Limit(timeout)
        while True:
            while not self._events:
                self._keep_event(self._next(limit))
            event = _event(self._events.popleft())
            if event.name in names:
                return event

    def _negotiate(self, limit: _Limit) -> None:
        if not isinstance(self._next(limit).get("QMP"), dict):
            raise _not_qmp("its greeting is something else")
        self._command("qmp_capabilities", None, limit)

    def _command(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        limit: _Limit,
        descriptors: Sequence[int] = (),
    ) -> object:
        self._last_id += 1
        message: Message = {"execute": command, "id": self._last_id}
        if arguments is not None:
            message["arguments"] = arguments
        for first in range(0, len(descriptors), DESCRIPTORS_AT_ONCE):
            self._send(b" ", limit, descriptors[first : first + DESCRIPTORS_AT_ONCE])
        self._send(json.dumps(message).encode() + b"\r\n", limit)
        while True:
            answer = self._next(limit)
            # An error without an ID answers what was not read as a command. An answer with another
            # ID is late: its command was not waited for any longer.
            if answer.get("id") == self._last_id or ("error" in answer and "id" not in answer):
                return _value(command, answer)
            self._keep_event(answer)

    def _keep_event(self, message: Message) -> None:
        if "event" in message:
            self._events.append(message)

    def _next(self, limit: _Limit) -> Message:
        """The next message; waits for it."""
        while True:
            if (message := self._buffered()) is not None:
                return message
            self._wait(select.POLLIN, limit)
            self._read()

    def _buffered(self) -> Message | None:
        """The first message of those that were read, if there is a whole one."""
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end]).strip()
            del self._received[: end + 1]
            if line:
                return _message(line)
        if len(self._received) > _LONGEST:
            raise _not_qmp(f"a message has more than {_LONGEST >> 20} MiB")
        return None

    def _read(self) -> bool:
        """Read what has come; whether there was something.

        Raises:
            QmpClosedError: the connection has ended.
        """
        try:
            chunk = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            raise _closed() from error
        if not chunk:
            raise _closed()
        self._received += chunk
        return True

    def _send(self, data: bytes, limit: _Limit, descriptors: Sequence[int] = ()) -> None:
        while data:
            self._wait(select.POLLOUT, limit)
            try:
                sent = socket.send_fds(self._connection, [data], descriptors)
            except BlockingIOError:
                continue
            except OSError as error:
                raise _closed() from error
            data, descriptors = data[sent:], ()

    def _wait(self, for_what: int, limit: _Limit) -> None:
        """Wait for the socket, and no longer than until the other process is stopped."""
        poll = select.poll()
        try:
            poll.register(self._connection, for_what)
        except ValueError as error:
            raise _closed() from error
        while limit.left() > 0:
            if poll.poll(1000 * min(limit.left(), _LOOK)):
                return
            if self._stopped():
                break
        within = "" if limit.seconds is None else f" within {limit.seconds:g} s"
        raise QmpTimeoutError(f"the machine's process did not answer by QMP{within}")


class _Limit:
    """How long one exchange may take, from now on."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        return _LOOK if self._end is None else max(0.0, self._end - time.monotonic())


def _message(line: bytes) -> Message:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _not_qmp(str(error)) from error
    if not isinstance(found, dict):
        raise _not_qmp("a message is not an object")
    return found


def _value(command: str, answer: Message) -> object:
    """The value in the answer to a command."""
    if "return" in answer:
        return answer["return"]
    error = answer.get("error")
    if not isinstance(error, dict):
        raise _not_qmp(f"the answer to {command} has no value")
    raise QmpCommandError(command, str(error.get("class")), str(error.get("desc")))


def _event(message: Message) -> QmpEvent:
    name, data, stamp = (message.get(key) for key in ("event", "data", "timestamp"))
    malformed = f"the machine sent a malformed event: {str(message)[:_SHOWN]}"
    if not isinstance(name, str) or not isinstance(stamp, dict):
        raise EngineError(malformed)
    try:
        seconds = float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise EngineError(malformed) from error
    return QmpEvent(name, data if isinstance(data, dict) else {}, seconds)


def _closed() -> QmpClosedError:
    return QmpClosedError("the machine's process closed its QMP connection")


def _not_qmp(why: str) -> EngineError:
    return EngineError(f"the machine's process does not speak QMP: {why}")
