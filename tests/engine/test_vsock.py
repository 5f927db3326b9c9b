"""The ways to a guest's sockets, with a VMM that says what it is told."""

from __future__ import annotations

import contextlib
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cerne.engine.vsock import GUEST_SOCKET, LARGEST_PORT, UnixVsock
from cerne.errors import ConflictError, EngineError, GuestError, GuestTimeoutError, InputError

Answering = Callable[[bytes], UnixVsock]


@pytest.fixture
def answering(directory: Path) -> Iterator[Answering]:
    """Makes a directory whose socket answers one caller with these bytes, and hangs up if none."""
    with contextlib.ExitStack() as stack:

        def make(answer: bytes) -> UnixVsock:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(directory / GUEST_SOCKET))
            listener.listen()

            def serve() -> None:
                caller, _ = listener.accept()
                assert caller.recv(100) == b"CONNECT 52\n"
                caller.sendall(answer)
                if answer:
                    stack.callback(caller.close)
                else:
                    caller.close()

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            return UnixVsock(directory)

        yield make


def test_what_follows_the_answer_is_the_guests(answering: Answering) -> None:
    with answering(b"OK 1073741824\nhello\n").connect(52, 20) as link:
        assert link.recv(6, socket.MSG_WAITALL) == b"hello\n"
        assert link.gettimeout() is None


def test_a_port_that_nobody_listens_at_is_said(answering: Answering) -> None:
    with pytest.raises(GuestError, match="vsock port 52"):
        answering(b"").connect(52, 20)


def test_an_answer_that_is_none_is_not_taken_for_one(answering: Answering) -> None:
    with pytest.raises(GuestError):
        answering(b"NO" * 100).connect(52, 20)


def test_a_guest_that_does_not_answer_is_not_waited_for(answering: Answering) -> None:
    with pytest.raises(GuestTimeoutError):
        answering(b"O").connect(52, 0.2)


def test_a_machine_that_is_not_there_is_said(directory: Path) -> None:
    with pytest.raises(EngineError, match="No such file"):
        UnixVsock(directory).connect(52, 20)
    with pytest.raises(EngineError, match="No such file"):
        UnixVsock(directory / "none").listen(52)


@pytest.mark.parametrize("port", [-1, LARGEST_PORT + 1])
def test_a_port_that_cannot_be_is_refused(directory: Path, port: int) -> None:
    with pytest.raises(InputError):
        UnixVsock(directory).connect(port, 1)
    with pytest.raises(InputError):
        UnixVsock(directory).listen(port)


def test_a_port_is_had_once_and_again_after_its_program(directory: Path) -> None:
    way = UnixVsock(directory)
    with way.listen(7):
        assert stat.S_IMODE((directory / "7").stat().st_mode) == 0o666
        with pytest.raises(ConflictError, match="port 7"):
            way.listen(7)
    with way.listen(7) as listener, socket.socket(socket.AF_UNIX) as guest:
        guest.connect(str(directory / "7"))
        accepted, _ = listener.accept()
        accepted.close()


def test_a_file_in_the_place_of_a_socket_stays(directory: Path) -> None:
    (directory / "7").write_text("kept")
    with pytest.raises(ConflictError):
        UnixVsock(directory).listen(7)
    assert (directory / "7").read_text() == "kept"
