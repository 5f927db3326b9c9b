"""A session at a machine's serial console; Ctrl-] ends it, as in telnet(1)."""

from __future__ import annotations

import select
import socket
import sys

from cerne.cli.streams import read_some, write_all
from cerne.cli.terminal import raw_terminal, require_terminal

_DETACH = b"\x1d"
_CHUNK = 65536


def attach(connection: socket.socket, name: str) -> None:
    """Connect the user's terminal to a console until Ctrl-] is pressed or the machine ends.

    Raises:
        InputError: stdin is not a terminal.
    """
    require_terminal("follow the console without a terminal: cerne logs -f NAME")
    print(f"At the console of {name}. Ctrl-] leaves it.", file=sys.stderr)
    with raw_terminal():
        ended = _join(connection)
    print(f"\nThe console of {name} ended." if ended else f"\nLeft {name}.", file=sys.stderr)


def _join(connection: socket.socket) -> bool:
    """Copy bytes both ways; return True if the console ended, False if the user left."""
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    while True:
        readable, _, _ = select.select([keys, connection], [], [])
        if connection in readable:
            shown = connection.recv(_CHUNK)
            if not shown:
                return True
            write_all(screen, shown)
        if keys in readable:
            typed = read_some(keys)
            before, detach, _ = typed.partition(_DETACH)
            connection.sendall(before)
            if detach or not typed:
                return False
