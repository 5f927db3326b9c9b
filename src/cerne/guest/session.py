"""One session with a guest's agent: a port claimed, connected and in step (``docs/agent.md``).

A port is a Unix socket that one client may use at a time. Clients agree by flock(2) on a file
beside it; the file is left not empty where a frame may have been cut off, by a client that died or
by a hypervisor that dropped what a client had sent before it left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import select
import socket
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cerne.errors import BusyError, GuestError, GuestTimeoutError, InputError
from cerne.guest import wire
from cerne.guest.wire import Decoder, Frame, FrameType

_CHUNK = 256 * 1024
_CLAIM_TIMEOUT = 10.0
_PAUSE = 0.02
_LOOK = 0.25
"""Seconds between looks at whether the machine still runs."""
_SAY_AGAIN = 1.0
"""Seconds after which an unanswered HELLO is repeated: the guest may have dropped the first."""
_UNACKNOWLEDGED = frozenset((FrameType.STDIN, FrameType.DATA, FrameType.ENTRY))
"""Frames of which the hypervisor may drop a part if we leave before the guest has read them."""


class Port:
    """A claimed port: no other client on this host uses it until it is given back."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self.cut_off = os.fstat(lock).st_size > 0
        """Whether the agent may still wait for the rest of a frame of the client before."""
        os.pwrite(lock, b"1", 0)

    @classmethod
    def claim(cls, sockets: Sequence[Path]) -> Port:
        """Claim a free port, waiting a little for one.

        Raises:
            BusyError: others hold them all.
            GuestError: the machine has no directory for sockets (it does not run).
        """
        deadline = time.monotonic() + _CLAIM_TIMEOUT
        while True:
            for path in sockets:
                port = cls._try(path)
                if port is not None:
                    return port
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"all {len(sockets)} of the guest's agent ports are in use",
                    hint="wait for a command or a copy in the guest to end",
                )
            time.sleep(_PAUSE)

    @classmethod
    def _try(cls, path: Path) -> Port | None:
        try:
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise GuestError("the machine has no agent ports: it does not run") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return cls(path, lock)

    def release(self, *, clean: bool) -> None:
        """Give it back; `clean` where no frame was cut off."""
        if clean:
            os.ftruncate(self._lock, 0)
        os.close(self._lock)


class Session:
    """A connection on which whole frames go; a context manager.

    Frames may be sent by several threads, and received by one at a time.
    """

    def __init__(self, connection: socket.socket, port: Port | None = None) -> None:
        self._connection = connection
        self._port = port
        self._decoder = Decoder()
        self.version = wire.OLDEST_VERSION
        """Of the protocol, as both sides speak it; the agent says so when it is greeted."""
        self._sending = threading.Lock()
        self._urgent: deque[bytes] = deque()
        self._whole = True
        self._unacknowledged = False
        self._closed = False

    @classmethod
    def open(
        cls, sockets: Sequence[Path], timeout: float, alive: Callable[[], bool] = lambda: True
    ) -> Self:
        """Claim a port, connect to it and come into step with the agent.

        Raises:
            BusyError: all ports are in use.
            GuestTimeoutError: the agent did not answer in `timeout` seconds.
            GuestError: the machine ended, or the agent speaks another version.
        """
        deadline = time.monotonic() + timeout
        port = Port.claim(sockets)
        connected = False
        try:
            session = cls(_connect(port.path, deadline, alive), port)
            connected = True
        finally:
            if not connected:
                port.release(clean=not port.cut_off)
        try:
            session.greet(deadline, alive)
        except BaseException:
            session.close()
            raise
        return session

    def greet(self, deadline: float, alive: Callable[[], bool] = lambda: True) -> None:
        """Say HELLO until the agent answers it; whatever came before is of a former session."""
        nonce = secrets.token_bytes(wire.NONCE_SIZE)
        hello = wire.encode(FrameType.HELLO, wire.HELLO.pack(wire.MAGIC, wire.VERSION, nonce))
        # Zeros complete a frame that was cut off, and mean nothing after that.
        with_zeros = bytes(wire.HEADER.size + wire.MAX_PAYLOAD) + hello
        cut_off = self._port is None or self._port.cut_off
        self._transmit(with_zeros if cut_off else hello)
        heard = bytearray()
        say_again = time.monotonic() + _SAY_AGAIN
        while not self._welcome(heard, nonce):
            now = time.monotonic()
            if now >= deadline:
                raise GuestTimeoutError("the guest's agent does not answer")
            if not alive():
                raise GuestError("the machine ended before its agent answered")
            if now >= say_again:
                if self._is_taken():
                    self._transmit_if_possible(with_zeros)
                say_again = now + _SAY_AGAIN
            if self._wait_readable(min(deadline, now + _LOOK) - now):
                heard += self._receive_bytes()

    def _welcome(self, heard: bytearray, nonce: bytes) -> bool:
        """Whether the answer to our HELLO is in what was heard; if so, be in step from there."""
        found = heard.find(nonce)
        if found < 0:
            # The nonce may yet be in the middle of coming.
            del heard[: -(wire.HEADER.size + wire.HELLO.size)]
            return False
        start = found + wire.NONCE_SIZE - wire.HELLO.size
        if start < wire.HEADER.size:
            raise wire.nonsense("a welcome that makes no sense")
        magic, version, _ = wire.HELLO.unpack_from(heard, start)
        if magic != wire.MAGIC:
            raise wire.nonsense("a welcome that makes no sense")
        if not wire.OLDEST_VERSION <= version <= wire.VERSION:
            raise GuestError(
                f"the guest's agent speaks version {version} of the protocol, and this Cerne "
                f"versions {wire.OLDEST_VERSION} to {wire.VERSION}",
                hint="build the image anew with this Cerne",
            )
        self.version = version
        self._decoder.feed(bytes(heard[found + wire.NONCE_SIZE :]))
        return True

    def send(self, kind: FrameType, payload: bytes = b"") -> None:
        """Send a frame, waiting for room.

        Raises:
            GuestError: the machine ended.
        """
        if kind in _UNACKNOWLEDGED:
            self._unacknowledged = True
        with self._sending:
            self._transmit(wire.encode(kind, payload))
        self._send_urgent_frames()

    def send_urgent(self, kind: FrameType, payload: bytes = b"") -> None:
        """Send a frame as soon as may be; may be called from a signal handler.

        If a frame is on its way, whoever sends that one sends this one after it.
        """
        self._urgent.append(wire.encode(kind, payload))
        self._send_urgent_frames()

    def _send_urgent_frames(self) -> None:
        while self._urgent and self._sending.acquire(blocking=False):
            try:
                while self._urgent:
                    self._transmit(self._urgent.popleft())
            finally:
                self._sending.release()

    def send_strings(self, strings: Iterable[str]) -> None:
        """Send the strings of the request that follows.

        Raises:
            InputError: they are too many or too long, or hold a zero byte.
        """
        encoded = [os.fsencode(text) for text in strings]
        if any(b"\0" in text for text in encoded):
            raise InputError("an argument with a zero byte cannot be given to a program")
        joined = b"".join(text + b"\0" for text in encoded)
        if len(joined) > wire.MAX_ARGUMENTS or len(encoded) > wire.MAX_STRINGS:
            raise InputError(
                f"the command and its environment are {len(joined)} bytes, and at most "
                f"{wire.MAX_ARGUMENTS} are taken",
                hint="copy long data into the guest, or send it on the standard input",
            )
        for start in range(0, len(joined), wire.MAX_PAYLOAD):
            self.send(FrameType.ARGUMENTS, joined[start : start + wire.MAX_PAYLOAD])

    def receive(self, timeout: float | None = None) -> Frame:
        """The next frame.

        Raises:
            GuestTimeoutError: none came in `timeout` seconds.
            GuestError: the machine ended, its agent started anew, or it sent what is no frame.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        looked = False
        while True:
            frame = self._decoder.next()
            if frame is None:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                # A guest may send what is no answer for ever.
                late = left == 0 and looked
                looked = True
                if late or not self._wait_readable(left):
                    raise GuestTimeoutError("the guest's agent does not answer")
                self._decoder.feed(self._receive_bytes())
            elif frame.type is FrameType.RESTARTED:
                raise GuestError("the guest's agent started anew; what it was doing is lost")
            elif frame.type is not FrameType.WELCOME:
                return frame

    def expect(self, kind: FrameType, timeout: float | None = None) -> bytes:
        """The payload of the next frame, which is to be of this type.

        Raises:
            GuestError: the agent answers that it cannot, in its words.
            GuestTimeoutError: as `receive`.
        """
        frame = self.receive(timeout)
        if frame.type is FrameType.ERROR:
            raise error_of(frame.payload)
        if frame.type is not kind:
            raise wire.nonsense(f"{frame.type.name} where {kind.name} was due")
        if kind is FrameType.DONE:
            self._unacknowledged = False
        return frame.payload

    def has_answer(self) -> bool:
        """Whether bytes from the guest are waiting to be received."""
        return self._wait_readable(0)

    def close(self) -> None:
        """Give the port back."""
        if self._closed:
            return
        self._closed = True
        # A thread that waits for the guest in receive() is woken by this, not by close(2).
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if self._port is not None:
            self._port.release(clean=self._whole and not self._unacknowledged)

    def _transmit(self, data: bytes) -> None:
        self._whole = False
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise _gone() from error
        self._whole = True

    def _is_taken(self) -> bool:
        """Whether the hypervisor has taken all that was sent.

        What still waits for a guest that boots is not lost; saying it again would only be more for
        that guest to read.
        """
        waiting = fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4))
        return not any(waiting)

    def _transmit_if_possible(self, data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            self._whole = self._connection.send(data, socket.MSG_DONTWAIT) == len(data)

    def _wait_readable(self, timeout: float | None) -> bool:
        poll = select.poll()
        try:
            poll.register(self._connection, select.POLLIN)
        except ValueError as error:
            # Another thread has closed the session.
            raise _gone() from error
        return bool(poll.poll(None if timeout is None else timeout * 1000))

    def _receive_bytes(self) -> bytes:
        try:
            data = self._connection.recv(_CHUNK)
        except OSError as error:
            raise _gone() from error
        if not data:
            raise _gone()
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def error_of(payload: bytes) -> GuestError:
    """The error that the agent tells of."""
    if len(payload) < wire.ERROR.size:
        return wire.nonsense("an error that makes no sense")
    words = wire.readable(payload[wire.ERROR.size :])
    if wire.ERROR.unpack_from(payload)[0] == errno.ENOSYS:
        return GuestError(
            f"the guest's agent is too old for this: {words}",
            hint="build its image anew with this Cerne, and start the machine anew from it",
        )
    return GuestError(words)


def _gone() -> GuestError:
    return GuestError("the connection to the guest's agent ended: the machine is gone")


def _connect(path: Path, deadline: float, alive: Callable[[], bool]) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
            return connection
        except (FileNotFoundError, ConnectionRefusedError) as error:
            connection.close()
            if not alive():
                raise GuestError("the machine ended before its agent answered") from error
            if time.monotonic() >= deadline:
                raise GuestTimeoutError("the machine does not serve its agent's ports") from error
        except BaseException:
            connection.close()
            raise
        time.sleep(_PAUSE)
