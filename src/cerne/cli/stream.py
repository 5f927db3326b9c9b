"""This process's stdin and stdout, joined to a stream socket as nc(1) does."""

from __future__ import annotations

import contextlib
import select
import socket
import sys

from cerne.cli.streams import read_some, write_all

_CHUNK = 65536
_GONE = select.POLLHUP | select.POLLERR


def join(connection: socket.socket) -> None:
    """Carry stdin to a connection, and what comes from it to stdout, until both have ended.

    Where the other side has gone altogether, what stdin still has is nobody's.
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
    """Write what has come; False at the end."""
    try:
        data = connection.recv(_CHUNK)
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    write_all(screen, data)
    return bool(data)


def _send(connection: socket.socket, data: bytes) -> bytes:
    """Send as much as is taken; the rest, which is nothing where nobody takes it any more."""
    try:
        return data[connection.send(data) :]
    except BlockingIOError:
        return data
    except (BrokenPipeError, ConnectionResetError):
        return b""


def _send_no_more(connection: socket.socket) -> None:
    # It may be gone altogether.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
