"""Keeps a backend of one machine: starts it, starts it again when it dies, ends with the machine.

Run as a program of its own, with the standard library alone: there is one for each backend. Its
arguments are the leash, a socket to the machine's process, on which that says that it ends in order
and which breaks when it was killed; the descriptors that the backend inherits, with commas between
them; and the backend's command.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

_SOON = 5.0
"""Seconds within which a backend that ends has never worked."""
_MOST_FAILURES = 10
_DELAY = 0.1
_PATIENCE = 10.0


def main(leash: socket.socket, descriptors: Sequence[int], command: Sequence[str]) -> int:
    """Keep the backend until the machine's end."""
    failures = 0
    while failures < _MOST_FAILURES:
        began = time.monotonic()
        if _serve(leash, descriptors, command):
            return 0
        failures = failures + 1 if time.monotonic() - began < _SOON else 0
        # The machine may have ended just now, of which a backend may know before.
        if select.select([leash], [], [], _DELAY)[0]:
            return 0
    return 1


def _serve(leash: socket.socket, descriptors: Sequence[int], command: Sequence[str]) -> bool:
    """Run the backend once; whether the machine has ended."""
    child = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
    watch = os.pidfd_open(child.pid)
    try:
        ready, _, _ = select.select([leash.fileno(), watch], [], [])
    finally:
        os.close(watch)
    if leash.fileno() not in ready:
        child.wait()
        return False
    orderly = False
    with contextlib.suppress(OSError):
        orderly = bool(leash.recv(16))
    child.send_signal(signal.SIGTERM if orderly else signal.SIGKILL)
    try:
        child.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    return True


if __name__ == "__main__":
    sys.exit(
        main(
            socket.socket(fileno=int(sys.argv[1])),
            [int(number) for number in sys.argv[2].split(",")],
            sys.argv[3:],
        )
    )
