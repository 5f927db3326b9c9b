"""Connects to a guest's sockets: Unix sockets of our VMM, or AF_VSOCK of the host's kernel."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import ConflictError, EngineError, GuestError, GuestTimeoutError, InputError

GUEST_SOCKET = "guest.sock"
"""The socket in the directory of a machine's sockets that leads to its guest's ports."""

LARGEST_PORT = (1 << 32) - 2

_BACKLOG = 128
_LONGEST_ANSWER = 32
# A VMM that root started runs as another user. The parent directory controls the access.
_CONNECTED_TO_BY_ALL = 0o666


@dataclass(frozen=True, slots=True)
class UnixVsock:
    """The sockets in a directory of our VMM's machine (`cerne.vmm.vsock`)."""

    directory: Path

    @property
    def place(self) -> str:
        """The directory."""
        return str(self.directory)

    def connect(self, port: int, timeout: float) -> socket.socket:
        """Connect to a port of the guest (see `Vsock.connect`)."""
        _require_port(port)
        with _connecting(socket.AF_UNIX, port, timeout) as link:
            link.connect(str(self.directory / GUEST_SOCKET))
            link.settimeout(timeout)
            link.sendall(b"CONNECT %d\n" % port)
            if not _line(link).startswith(b"OK "):
                raise ConnectionResetError(errno.ECONNRESET, "refused")
        return link

    def listen(self, port: int) -> socket.socket:
        """Listen for the guest's connections to a port (see `Vsock.listen`)."""
        _require_port(port)
        path = self.directory / str(port)
        if path.is_socket() and not _is_served(path):
            path.unlink(missing_ok=True)
        with _listening(socket.socket(socket.AF_UNIX), port) as listener:
            listener.bind(str(path))
            path.chmod(_CONNECTED_TO_BY_ALL)
            listener.listen(_BACKLOG)
        return listener


@dataclass(frozen=True, slots=True)
class KernelVsock:
    """The sockets of the host's kernel (vsock(7)), which reach a guest with vhost-vsock."""

    cid: int

    @property
    def place(self) -> str:
        """The guest's CID."""
        return f"CID {self.cid}"

    def connect(self, port: int, timeout: float) -> socket.socket:
        """Connect to a port of the guest (see `Vsock.connect`)."""
        _require_port(port)
        with _connecting(socket.AF_VSOCK, port, timeout) as link:
            link.settimeout(timeout)
            link.connect((self.cid, port))
        return link

    def listen(self, port: int) -> socket.socket:
        """Listen for the guest's connections to a port (see `Vsock.listen`)."""
        _require_port(port)
        with _listening(_OneGuests(self.cid), port) as listener:
            listener.bind((socket.VMADDR_CID_ANY, port))
            listener.listen(_BACKLOG)
        return listener


class _OneGuests(socket.socket):
    """Accepts the connections of one guest; all guests of the host connect to the same port."""

    def __init__(self, cid: int) -> None:
        super().__init__(socket.AF_VSOCK, socket.SOCK_STREAM)
        self._cid = cid

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        while True:
            connection, address = super().accept()
            if address[0] == self._cid:
                return connection, address
            connection.close()


def _require_port(port: int) -> None:
    if not 0 <= port <= LARGEST_PORT:
        raise InputError(f"{port} is not a vsock port", hint=f"take one from 0 to {LARGEST_PORT}")


@contextlib.contextmanager
def _connecting(family: int, port: int, timeout: float) -> Iterator[socket.socket]:
    link = socket.socket(family, socket.SOCK_STREAM)
    # A blocking connect waits for a place in a listener's queue, and one with Python's timeout
    # fails at once; SO_SNDTIMEO limits the wait (unix(7), socket(7)).
    limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1_000_000))
    link.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    try:
        yield link
        link.settimeout(None)
    except (TimeoutError, BlockingIOError) as error:
        link.close()
        raise GuestTimeoutError(
            f"the guest did not answer at vsock port {port} within {timeout:g} s"
        ) from error
    except ConnectionResetError as error:
        link.close()
        raise GuestError(
            f"no program in the guest listens at vsock port {port}",
            hint="start a program in it that listens: socat VSOCK-LISTEN:PORT -",
        ) from error
    except OSError as error:
        link.close()
        raise EngineError(
            f"connecting to the guest's vsock port {port} failed: {error.strerror}"
        ) from error


@contextlib.contextmanager
def _listening(listener: socket.socket, port: int) -> Iterator[socket.socket]:
    try:
        yield listener
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(
                f"another program listens at vsock port {port}", hint="take another port"
            ) from error
        raise EngineError(f"listening at vsock port {port} failed: {error.strerror}") from error


def _is_served(path: Path) -> bool:
    """Whether a program listens there; a socket's file stays after its program has ended."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


def _line(link: socket.socket) -> bytes:
    """Read the first line, and no further byte, because the rest belongs to the guest."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LONGEST_ANSWER:
        byte = link.recv(1)
        if not byte:
            break
        line += byte
    return line
