"""One QMP session over `qemu.qmp`, on a separate event loop (QMP: ``docs/interop/qmp-spec``).

A separate module, because importing asyncio and qemu.qmp takes 30 ms, which a start spends while
the machine boots.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from qemu.qmp import (
    ConnectError,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
)

from cerne.errors import EngineError, NotAnsweringError
from cerne.vmm.descriptors import DESCRIPTORS_AT_ONCE

_SHOWN = 200
_LOOK = 0.5
"""Seconds between looks at whether the other process is stopped."""

_T = TypeVar("_T")


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
        self._runner = asyncio.Runner()
        self._client = QMPClient()
        self._connection = connection
        try:
            self._run(self._client.connect(connection), timeout)
        except BaseException:
            self._runner.close()
            connection.close()
            raise

    def close(self) -> None:
        """Disconnect. Errors of the connection are ignored, because each command has its result."""
        with self._runner, contextlib.suppress(EngineError):
            self._run(self._client.disconnect(), None)

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None,
        timeout: float | None,
        descriptors: Sequence[int] = (),
    ) -> object:
        """Run a command, with descriptors sent before it, and return its value."""
        for first in range(0, len(descriptors), DESCRIPTORS_AT_ONCE):
            # qemu.qmp sends one per message; many of them fill a socket's buffer.
            several = descriptors[first : first + DESCRIPTORS_AT_ONCE]
            socket.send_fds(self._connection, [b" "], several)
        try:
            return self._run(self._client.execute(command, arguments), timeout)
        except ExecuteError as error:
            raise QmpCommandError(command, error.error_class, str(error)) from error

    def events(self) -> tuple[QmpEvent, ...]:
        """The events that have come since the last call."""
        # A turn of the loop reads the data that has reached the socket.
        self._runner.run(asyncio.sleep(0))
        return tuple(_event(message) for message in self._client.events.clear())

    def wait_event(self, names: frozenset[str], timeout: float | None) -> QmpEvent:
        """Wait for an event of one of these names, dropping others."""
        return self._run(self._next_event(names), timeout)

    async def _next_event(self, names: frozenset[str]) -> QmpEvent:
        while True:
            event = _event(await self._next_message())
            if event.name in names:
                return event

    async def _next_message(self) -> Message:
        # The listener does not wake up when the connection ends, so both are waited for.
        coming = asyncio.ensure_future(self._client.events.get())
        ended = asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait((coming, ended), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise QmpClosedError("the machine's process closed its QMP connection")
            return coming.result()
        finally:
            coming.cancel()
            ended.cancel()

    async def _disconnected(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    def _run(self, action: Coroutine[object, object, _T], timeout: float | None) -> _T:
        with _translated(timeout):
            return self._runner.run(self._bounded(action, timeout))

    async def _bounded(self, action: Coroutine[object, object, _T], timeout: float | None) -> _T:
        """Wait for an answer, and no longer than until the other process is stopped.

        Raises:
            TimeoutError: there is none in time, or will be none.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        task = asyncio.ensure_future(action)
        try:
            while True:
                left = _LOOK if deadline is None else deadline - time.monotonic()
                done, _ = await asyncio.wait({task}, timeout=max(0.0, min(left, _LOOK)))
                if done:
                    return task.result()
                if left <= 0 or self._stopped():
                    raise TimeoutError
        finally:
            if not task.done():
                task.cancel()
                # It frees the connection for the next command, or for the end.
                await asyncio.wait({task})


def _event(message: Message) -> QmpEvent:
    name, data, stamp = (message.get(key) for key in ("event", "data", "timestamp"))
    malformed = f"the machine sent a malformed event: {str(dict(message))[:_SHOWN]}"
    if not isinstance(name, str) or not isinstance(stamp, dict):
        raise EngineError(malformed)
    try:
        seconds = float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise EngineError(malformed) from error
    return QmpEvent(name, data if isinstance(data, dict) else {}, seconds)


@contextlib.contextmanager
def _translated(timeout: float | None) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        within = "" if timeout is None else f" within {timeout:g} s"
        raise QmpTimeoutError(f"the machine's process did not answer by QMP{within}") from error
    except ExecuteError:
        raise
    except ConnectError as error:
        cause = error.exc
        if isinstance(cause, EOFError | ConnectionError):
            raise QmpClosedError("the machine's process closed its QMP connection") from error
        raise EngineError(f"the machine's process does not speak QMP: {error}") from error
    except (ExecInterruptedError, EOFError, ConnectionError) as error:
        raise QmpClosedError("the machine's process closed its QMP connection") from error
    except QMPError as error:
        raise EngineError(f"QMP failed: {error}") from error
    except (ValueError, RecursionError) as error:
        # A line above the 10 MiB that qemu.qmp reads, or JSON with too much nesting.
        raise EngineError(f"the machine's process does not speak QMP: {error}") from error
