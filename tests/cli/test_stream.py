"""Stdin and stdout joined to a socket, in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.waiting import PATIENCE

_JOIN = "import socket, sys; from cerne.cli.stream import join; join(socket.socket(fileno={}))"


class Joined:
    """A process, and the other end of its socket."""

    def __init__(self) -> None:
        self.link, theirs = socket.socketpair()
        self.link.settimeout(PATIENCE)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _JOIN.format(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )


@pytest.fixture
def joined() -> Iterator[Joined]:
    made = Joined()
    yield made
    made.link.close()
    made.process.kill()
    made.process.communicate()


def _received(link: socket.socket) -> bytes:
    data = b""
    while piece := link.recv(1 << 16):
        data += piece
    return data


def test_it_goes_both_ways_until_both_have_ended(joined: Joined) -> None:
    assert joined.process.stdin is not None
    joined.process.stdin.write(b"question")
    joined.process.stdin.close()
    joined.process.stdin = None
    assert _received(joined.link) == b"question"
    joined.link.sendall(b"answer" * 1000)
    joined.link.shutdown(socket.SHUT_WR)
    assert joined.process.communicate(timeout=PATIENCE)[0] == b"answer" * 1000
    assert joined.process.returncode == 0


def test_more_is_sent_than_is_taken_at_once(joined: Joined) -> None:
    joined.link.shutdown(socket.SHUT_WR)
    data = bytes(range(256)) * 8192
    assert joined.process.stdin is not None
    joined.process.stdin.write(data[: 1 << 16])
    joined.process.stdin.flush()
    assert joined.link.recv(1 << 16, socket.MSG_WAITALL) == data[: 1 << 16]
    joined.process.stdin.write(data[1 << 16 : 3 << 16])
    joined.process.stdin.close()
    joined.process.stdin = None
    assert _received(joined.link) == data[1 << 16 : 3 << 16]
    assert joined.process.wait(PATIENCE) == 0


def test_it_ends_when_the_other_side_has_gone(joined: Joined) -> None:
    """Though nobody has typed anything, or will."""
    joined.link.sendall(b"bye")
    joined.link.close()
    assert joined.process.wait(PATIENCE) == 0
    assert joined.process.stdout is not None
    assert joined.process.stdout.read() == b"bye"
