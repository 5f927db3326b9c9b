"""A synchronous QMP client, for both engines (QEMU Machine Protocol, ``docs/interop/qmp-spec``).

A QMP socket serves one client at a time, and the kernel queues the others: connecting waits for its
turn, so that simultaneous commands need no lock. Close clients soon.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from cerne.engine.base import ANSWER_TIMEOUT
from cerne.errors import EngineError, NotAnsweringError

if TYPE_CHECKING:
    from cerne.engine.qmp.session import QmpEvent, Session


LOOK_TIMEOUT = 5.0
"""As `ANSWER_TIMEOUT`, for commands that only read."""


class QmpClient:
    """One connection to a machine's QMP socket; a context manager.

    `timeout`, in seconds, limits the wait for each answer, and `connect_timeout` the wait for the
    connection, with the turns of other clients; by default it is `ANSWER_TIMEOUT`, or `timeout` if
    that is less. During a wait `stopped` is asked whether the machine's process is stopped, and
    answers nothing.

    Raises, on entry:
        EngineError: there is no such socket or no server, the answer is not QMP, or no greeting
            came in time.
    """

    def __init__(
        self,
        path: Path,
        timeout: float = 10.0,
        connect_timeout: float | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._connect_timeout = connect_timeout or min(timeout, ANSWER_TIMEOUT)
        self._stopped = stopped
        self._open: Session | None = None

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._connect_timeout
        connection = _connect(self._path, self._connect_timeout)
        from cerne.engine.qmp.session import Session

        self._open = Session(connection, max(0.0, deadline - time.monotonic()), self._stopped)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session, self._open = self._session, None
        session.close()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float | None = None,
        descriptors: Sequence[int] = (),
    ) -> object:
        """Run a command and return its value; `timeout` (seconds) replaces the client's.

        The `descriptors` are sent before it, in their order; the caller closes them.

        Raises:
            EngineError: the machine refused it (`QmpCommandError`, with the QMP error class), the
                connection broke, or no answer came in time; the command may still take effect.
        """
        limit = self._timeout if timeout is None else timeout
        return self._session.execute(command, arguments, limit, descriptors)

    def events(self) -> tuple[QmpEvent, ...]:
        """The events that have come since the last call, without waiting."""
        return self._session.events()

    def wait_event(self, *names: str, timeout: float | None = None) -> QmpEvent:
        """Wait for the next event of one of these names; events of other names are dropped.

        Without `timeout` (seconds) it waits until the connection ends.

        Raises:
            EngineError: none came in time, or the connection broke.
        """
        return self._session.wait_event(frozenset(names), timeout)

    def status(self) -> str:
        """The machine's run state, such as ``running``, ``paused`` or ``shutdown``."""
        answer = self.execute("query-status")
        status = answer.get("status") if isinstance(answer, dict) else None
        if not isinstance(status, str):
            raise EngineError(f"the machine answered query-status with {answer!r}")
        return status

    def stop(self) -> None:
        """Pause the vCPUs."""
        self.execute("stop")

    def cont(self) -> None:
        """Let the vCPUs run."""
        self.execute("cont")

    def system_powerdown(self) -> None:
        """Press the guest's power button."""
        self.execute("system_powerdown")

    def quit(self) -> None:
        """End the machine's process at once."""
        from cerne.engine.qmp.session import QmpClosedError

        # The process may be gone before it has answered.
        with contextlib.suppress(QmpClosedError):
            self.execute("quit")

    @property
    def _session(self) -> Session:
        if self._open is None:
            raise EngineError("the QMP client is not connected")
        return self._open


def _connect(path: Path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A blocking connect waits for a place in the server's queue, and a non-blocking one fails at
    # once; SO_SNDTIMEO limits the wait (unix(7), socket(7)).
    whole = int(timeout)
    interval = struct.pack("ll", whole, int((timeout - whole) * 1_000_000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, interval)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        if isinstance(error, BlockingIOError):
            raise NotAnsweringError(
                f"the process at {path} did not answer within {timeout:g} s"
            ) from error
        why = error.strerror or str(error)
        raise EngineError(f"connecting to the machine's QMP socket {path} failed: {why}") from error
    connection.setblocking(False)
    return connection
