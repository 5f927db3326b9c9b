"""One session with a guest's agent: a port claimed, connected and in step (``docs/agent.md``).

What the guest sends is bounded and checked: an agent that breaks the protocol ends its session and
nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cerne.errors import BusyError, GuestError, GuestTimeoutError, InputError
from cerne.guest import wire
from cerne.guest.wire import Decoder, Frame, FrameType

_CHUNK = 256 * 1024
_REPEAT = 1.0
_LOOK_UP = 0.05
_PATIENCE = 10.0


class Session:
    """A connection on which requests and answers go as whole frames.

    One thread receives; any thread, and a signal handler, may send.
    """

    def __init__(self, connection: socket.socket, lock: int | None = None) -> None:
        self._connection = connection
        self._lock = lock
        self._decoder = Decoder()
        self._outgoing: deque[bytes] = deque()
        self._sending = threading.Lock()

    @classmethod
    def open(
        cls,
        sockets: Sequence[Path],
        timeout: float,
        alive: Callable[[], bool] = lambda: True,
    ) -> Self:
        """Claim a free port, connect to it and come into step with the agent.

        Raises:
            BusyError: all ports are taken, and stay so.
            GuestTimeoutError: the agent did not answer within `timeout` seconds.
            GuestError: the machine does not run.
        """
        path, lock = _claim(sockets)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        session = cls(connection, lock)
        try:
            connection.connect(str(path))
            session.greet(timeout, alive)
        except OSError as error:
            session.close()
            raise GuestError(f"the machine's agent cannot be reached: {error.strerror}") from error
        except BaseException:
            session.close()
            raise
        return session

    def greet(self, timeout: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Come into step with the agent, which may not be there yet.

        Raises:
            GuestTimeoutError: it did not answer within `timeout` seconds.
            GuestError: the machine ended, or the agent speaks another version.
        """
        nonce = secrets.token_bytes(wire.NONCE_SIZE)
        hello = wire.HELLO.pack(wire.MAGIC, wire.VERSION, nonce)
        deadline = time.monotonic() + timeout
        repeat = 0.0
        stream = bytearray()
        while (version := _welcomed(stream, nonce)) is None:
            now = time.monotonic()
            if not alive():
                raise GuestError("the machine ended")
            if now >= deadline:
                raise GuestTimeoutError(f"the guest's agent did not answer within {timeout:g} s")
            if now >= repeat:
                self.send(FrameType.HELLO, hello)
                repeat = now + _REPEAT
            stream += self._read(min(_LOOK_UP, deadline - now))
        if version != wire.VERSION:
            raise GuestError(
                f"the guest's agent speaks version {version} of the protocol, and this is"
                f" version {wire.VERSION}",
                hint="build the image again with this Cerne",
            )
        self._decoder.feed(bytes(stream))

    def send(self, kind: FrameType, payload: bytes = b"") -> None:
        """Send a frame; whole, whoever else is sending.

        Raises:
            GuestError: the guest went away.
        """
        self._outgoing.append(wire.encode(kind, payload))
        # Whoever has the lock sends everybody's frames, and looks again once it has let go: no
        # frame stays behind, and a signal handler that interrupts a sender need not wait for it.
        while self._outgoing and self._sending.acquire(blocking=False):
            try:
                while self._outgoing:
                    self._send_all(self._outgoing.popleft())
            finally:
                self._sending.release()

    def send_strings(self, strings: Sequence[str]) -> None:
        """Send a request's strings, ahead of the request.

        Raises:
            InputError: one has a zero byte in it, or they are too many or too long.
        """
        encoded = [os.fsencode(text) for text in strings]
        if any(b"\0" in text for text in encoded):
            raise InputError("an argument with a zero byte in it cannot be given to the guest")
        joined = b"".join(text + b"\0" for text in encoded)
        if len(joined) > wire.MAX_ARGUMENTS or len(encoded) > wire.MAX_STRINGS:
            raise InputError(
                f"arguments of {len(joined)} bytes are too long for the guest's agent",
                hint="write them to a file, and copy that into the guest",
            )
        for start in range(0, len(joined), wire.MAX_PAYLOAD):
            self.send(FrameType.ARGUMENTS, joined[start : start + wire.MAX_PAYLOAD])

    def receive(self, deadline: float | None = None) -> Frame:
        """The next frame, waited for until `deadline` on the monotonic clock.

        Raises:
            GuestTimeoutError: none came in time.
            GuestError: the guest went away, or broke the protocol.
        """
        while (frame := self._decoder.next()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise GuestTimeoutError("the guest did not answer in time")
            self._decoder.feed(self._read(left))
        if frame.type is FrameType.RESTARTED:
            raise GuestError("the guest's agent was restarted")
        return frame

    def expect(self, kind: FrameType, timeout: float | None = None) -> bytes:
        """The payload of the next frame, which must be of this kind, within `timeout` seconds.

        Raises:
            GuestTimeoutError: none came in time.
            GuestError: the guest refused what it was asked (in its words), or went away.
        """
        frame = self.receive(None if timeout is None else time.monotonic() + timeout)
        if frame.type is FrameType.ERROR:
            raise error_of(frame.payload)
        if frame.type is not kind:
            raise wire.nonsense(f"{frame.type.name} in place of {kind.name}")
        return frame.payload

    def has_answer(self) -> bool:
        """Whether the guest has said something, without waiting for it."""
        return bool(select.select([self._connection], [], [], 0)[0])

    def close(self) -> None:
        """Give the port back."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send_all(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise GuestError(f"the guest went away: {error.strerror}") from error

    def _read(self, timeout: float | None) -> bytes:
        """What has come, waited for `timeout` seconds at most; empty where nothing has."""
        try:
            readable, _, _ = select.select([self._connection], [], [], timeout)
            data = self._connection.recv(_CHUNK) if readable else None
        except (OSError, ValueError) as error:
            raise GuestError("the guest went away") from error
        if data == b"":
            raise GuestError("the guest went away: its machine ended")
        return data or b""


def _claim(sockets: Sequence[Path]) -> tuple[Path, int]:
    deadline = time.monotonic() + _PATIENCE
    while True:
        for path in sockets:
            lock = _locked(path)
            if lock is not None:
                return path, lock
        if time.monotonic() >= deadline:
            raise BusyError(
                f"all {len(sockets)} sessions with the guest are in use",
                hint="end one of them, or try again later",
            )
        time.sleep(_LOOK_UP)


def _locked(path: Path) -> int | None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        lock = os.open(path.with_name(f"{path.name}.lock"), flags, 0o600)
    except OSError as error:
        raise GuestError(f"the machine does not run: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def error_of(payload: bytes) -> GuestError:
    """The error that the guest's agent told of, in its own words."""
    words = wire.readable(payload[wire.ERROR.size :]).strip()
    return GuestError(words or "the guest's agent refused, and did not say why")


def _welcomed(stream: bytearray, nonce: bytes) -> int | None:
    """The protocol version of the agent's answer to our greeting, or None until it has come.

    What a session that was cut off left on the port comes first, and need not be whole frames. It
    is dropped; what follows the answer stays.
    """
    at = stream.find(nonce)
    start = at + len(nonce) - wire.HELLO.size
    if at < 0 or start < wire.HEADER.size:
        return None
    magic, version, _ = wire.HELLO.unpack_from(stream, start)
    del stream[: at + len(nonce)]
    return int(version) if magic == wire.MAGIC else None
