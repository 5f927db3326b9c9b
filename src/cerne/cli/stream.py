"""Connects this process's stdin and stdout to a stream socket, as nc(1) does."""

from __future__ import annotations

import contextlib
import select
import socket
import sys

from cerne.cli.streams import read_some, write_all

_CHUNK = 65536
_GONE = select.POLLHUP | select.POLLERR


def join(connection: socket.socket) -> None:
    """Copy stdin to a connection, and the connection to stdout, until both have ended.

    If the other side has closed both ways, the rest of stdin is not read.
    """
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    connection.setblocking(False)
    waiting = b""
    typing = hearing = True
    while typing or hearing:
        poll = select.poll()
        poll.register(connection, select.POLLIN * hearing | select.POLLOUT * bool(waiting))
        if typing and not waiting:
            poll.register(keys, select.POLLIN)
        events = dict(poll.poll())
        happened = events.get(connection.fileno(), 0)
        if happened & _GONE and not hearing:
            return
        if hearing and happened & ~select.POLLOUT:
            hearing = _show(connection, screen)
        if happened & select.POLLOUT:
            waiting = _send(connection, waiting)
        if keys in events:
            waiting = read_some(keys)
            typing = bool(waiting)
            if not typing:
                _send_no_more(connection)


def _show(connection: socket.socket, screen: int) -> bool:
    """Write the data that has come; return False at its end."""
    try:
        data = connection.recv(_CHUNK)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    write_all(screen, data)
    return bool(data)


def _send(connection: socket.socket, data: bytes) -> bytes:
    """Send as much as the socket takes; return the rest, or nothing if the other side is gone."""
    try:
        return data[connection.send(data) :]
    except BlockingIOError:
        return data
    except (BrokenPipeError, ConnectionResetError):
        return b""


def _send_no_more(connection: socket.socket) -> None:
    # The other side may have closed both ways.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
