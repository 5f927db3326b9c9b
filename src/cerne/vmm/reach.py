"""Connects to Unix sockets of the host by the directories that hold them.

The process has an empty root and opens no path, so a name is looked up in an open directory. There
is no connectat(2): the process enters the directory for the moment of the call.
"""

from __future__ import annotations

import os
import socket
import threading

_turn = threading.Lock()


def connect(directory: int, name: str) -> socket.socket:
    """A non-blocking stream socket that is connected to the socket of this name.

    `directory` is a descriptor (O_PATH), and `name` has no slash.

    Raises:
        OSError: no program listens there, or its queue is full.
    """
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        with _turn:
            os.fchdir(directory)
            try:
                link.connect(name)
            finally:
                os.chdir("/")
    except OSError:
        link.close()
        raise
    return link
