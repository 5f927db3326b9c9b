"""A session with a guest's agent on one of its ports (``docs/agent.md``).

A port is a Unix socket that one client may use at a time. Clients take turns by flock(2) on a file
beside it. The file is not empty if a frame may be incomplete, because a client was killed or the
hypervisor dropped data of a client that left.
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

from cerne.errors import BusyError, GuestError, GuestTimeoutError, InputError, NotRunError
from cerne.guest import wire
from cerne.guest.wire import Decoder, Frame, FrameType
from cerne.units import counted

_CHUNK = 256 * 1024
_CLAIM_TIMEOUT = 10.0
_PAUSE = 0.02
_LOOK = 0.25
"""Seconds between checks whether the machine still runs."""
_SAY_AGAIN = 1.0
"""Seconds after which an unanswered HELLO is repeated: the guest may have dropped the first."""
_UNACKNOWLEDGED = frozenset((FrameType.STDIN, FrameType.DATA, FrameType.ENTRY))
"""Frames that the hypervisor may drop in part if we leave before the guest has read them."""


class Port:
    """A claimed port: no other client on this host uses it until it is released."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self.cut_off = os.fstat(lock).st_size > 0
        """Whether the agent may still wait for the rest of a former client's frame."""
        os.pwrite(lock, b"1", 0)

    @classmethod
    def claim(cls, sockets: Sequence[Path]) -> Port:
        """Claim a free port; wait a little for one.

        Raises:
            BusyError: other clients hold all ports.
            GuestError: the machine has no directory for sockets, because it does not run.
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
                    hint="wait until a command or a copy in the guest has ended",
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
        """Release it; `clean` says that no frame is incomplete."""
        if clean:
            os.ftruncate(self._lock, 0)
        os.close(self._lock)


class Session:
    """A connection that carries whole frames; a context manager.

    Several threads may send frames; one thread at a time may receive.
    """

    def __init__(self, connection: socket.socket, port: Port | None = None) -> None:
        self._connection = connection
        self._port = port
        self._decoder = Decoder()
        self.version = wire.OLDEST_VERSION
        """The version of the protocol that both sides speak, from the agent's answer to HELLO."""
        self._sending = threading.Lock()
        self._urgent: deque[bytes] = deque()
        self._whole = True
        self._unacknowledged = False
        self._closed = False

    @classmethod
    def open(
        cls, sockets: Sequence[Path], timeout: float, alive: Callable[[], bool] = lambda: True
    ) -> Self:
        """Claim a port, connect to it and synchronise with the agent.

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
        """Send HELLO until the agent answers it; drop what came before, from a former session."""
        nonce = secrets.token_bytes(wire.NONCE_SIZE)
        hello = wire.encode(FrameType.HELLO, wire.HELLO.pack(wire.MAGIC, wire.VERSION, nonce))
        # Zeros complete a frame that was cut off; the agent ignores the others.
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
        """Whether the answer to our HELLO has come; if so, the stream continues after it."""
        found = heard.find(nonce)
        if found < 0:
            # The rest of the nonce may still come.
            del heard[: -(wire.HEADER.size + wire.HELLO.size)]
            return False
        start = found + wire.NONCE_SIZE - wire.HELLO.size
        if start < wire.HEADER.size:
            raise wire.nonsense("a welcome that is not valid")
        magic, version, _ = wire.HELLO.unpack_from(heard, start)
        if magic != wire.MAGIC:
            raise wire.nonsense("a welcome that is not valid")
        if not wire.OLDEST_VERSION <= version <= wire.VERSION:
            raise GuestError(
                f"the guest's agent speaks version {version} of the protocol, and this Cerne "
                f"versions {wire.OLDEST_VERSION} to {wire.VERSION}",
                hint="build the image again with this Cerne",
            )
        self.version = version
        self._decoder.feed(bytes(heard[found + wire.NONCE_SIZE :]))
        return True

    def send(self, kind: FrameType, payload: bytes = b"") -> None:
        """Send a frame; wait until there is room for it.

        Raises:
            GuestError: the machine ended.
        """
        if kind in _UNACKNOWLEDGED:
            self._unacknowledged = True
        with self._sending:
            self._transmit(wire.encode(kind, payload))
        self._send_urgent_frames()

    def send_urgent(self, kind: FrameType, payload: bytes = b"") -> None:
        """Send a frame as soon as possible; may be called from a signal handler.

        If another thread is sending a frame, that thread sends this one afterwards.
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
            InputError: the strings are too many or too long, or contain a zero byte.
        """
        encoded = [os.fsencode(text) for text in strings]
        if any(b"\0" in text for text in encoded):
            raise InputError("an argument contains a zero byte, which no program can receive")
        joined = b"".join(text + b"\0" for text in encoded)
        if len(joined) > wire.MAX_ARGUMENTS or len(encoded) > wire.MAX_STRINGS:
            raise InputError(
                f"the command and its environment are {counted(len(joined), 'byte')}, and at most "
                f"{wire.MAX_ARGUMENTS} are taken",
                hint="copy long data into the guest, or send it on the standard input",
            )
        for start in range(0, len(joined), wire.MAX_PAYLOAD):
            self.send(FrameType.ARGUMENTS, joined[start : start + wire.MAX_PAYLOAD])

    def receive(self, timeout: float | None = None) -> Frame:
        """The next frame.

        Raises:
            GuestTimeoutError: none came in `timeout` seconds.
            GuestError: the machine ended, its agent restarted, or it broke the protocol.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        looked = False
        while True:
            frame = self._decoder.next()
            if frame is None:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                # A guest may for ever send frames that are not an answer.
                late = left == 0 and looked
                looked = True
                if late or not self._wait_readable(left):
                    raise GuestTimeoutError("the guest's agent does not answer")
                self._decoder.feed(self._receive_bytes())
            elif frame.type is FrameType.RESTARTED:
                raise GuestError("the guest's agent restarted and lost its work")
            elif frame.type is not FrameType.WELCOME:
                return frame

    def expect(self, kind: FrameType, timeout: float | None = None) -> bytes:
        """The payload of the next frame, which must have this type.

        Raises:
            GuestError: the agent reports a failure, in its words.
            GuestTimeoutError: as `receive`.
        """
        frame = self.receive(timeout)
        if frame.type is FrameType.ERROR:
            raise error_of(frame.payload)
        if frame.type is not kind:
            raise wire.nonsense(f"{frame.type.name} instead of {kind.name}")
        if kind is FrameType.DONE:
            self._unacknowledged = False
        return frame.payload

    def has_answer(self) -> bool:
        """Whether bytes from the guest are waiting to be received."""
        return self._wait_readable(0)

    def close(self) -> None:
        """Release the port."""
        if self._closed:
            return
        self._closed = True
        # This wakes a thread that waits in receive(); close(2) does not.
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
        """Whether the hypervisor has taken all sent data.

        Data that waits for a booting guest is not lost; that guest would have to read a repetition
        too.
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


_RUNNING = "cannot run "
_NOT_RUN = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR)


def error_of(payload: bytes) -> GuestError:
    """The error that the agent reports."""
    if len(payload) < wire.ERROR.size:
        return wire.nonsense("an error that is not valid")
    words = wire.readable(payload[wire.ERROR.size :])
    code = wire.ERROR.unpack_from(payload)[0]
    if code == errno.ENOSYS:
        return GuestError(
            f"the guest's agent is too old for this: {words}",
            hint="build its image again with this Cerne, and make the machine again from it",
        )
    if code in _NOT_RUN and words.startswith(_RUNNING):
        return NotRunError(words, missing=code == errno.ENOENT)
    return GuestError(words)


def _gone() -> GuestError:
    return GuestError("the connection to the guest's agent ended, because the machine has ended")


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
