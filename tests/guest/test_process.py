"""What a hostile guest may say about a process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from tests.waiting import PATIENCE

from cerne.errors import GuestError, GuestTimeoutError
from cerne.guest import ExitStatus, GuestProcess, wire
from cerne.guest.client import _gather
from cerne.guest.session import Session
from cerne.guest.wire import FrameType, encode

Pair = tuple[Session, socket.socket]


@pytest.mark.parametrize(
    ("by_signal", "code"), [(0, 256), (1, 0), (1, 65), (2, 0), (2**32 - 1, 2**32 - 1)]
)
def test_ends_that_make_no_sense(session_pair: Pair, by_signal: int, code: int) -> None:
    session, far = session_pair
    far.sendall(encode(FrameType.EXITED, wire.EXITED.pack(by_signal, code)))
    with pytest.raises(GuestError, match="is not valid"):
        GuestProcess(session, 1).wait(PATIENCE)


@pytest.mark.parametrize(
    "frame",
    [
        encode(FrameType.EXITED, b""),
        encode(FrameType.CREDIT, b"xxx"),
        encode(FrameType.DONE),
        encode(FrameType.HELLO),
    ],
)
def test_frames_that_do_not_belong(session_pair: Pair, frame: bytes) -> None:
    session, far = session_pair
    far.sendall(frame)
    with pytest.raises(GuestError, match="from a process that runs"):
        GuestProcess(session, 1).wait(PATIENCE)


def test_more_output_than_there_is_leave_for(session_pair: Pair) -> None:
    session, far = session_pair
    process = GuestProcess(session, 1)
    frames = encode(FrameType.STDOUT, bytes(wire.MAX_PAYLOAD)) * 9
    far.setblocking(False)
    sent = 0
    with pytest.raises(GuestError, match="more output than its credit"):
        # Nothing is read from the process, so that no leave is given back.
        while True:
            if sent < len(frames):
                sent += far.send(frames[sent:])
            with process._changed:
                process._receive(None)


def test_credit_never_grows_beyond_the_window(session_pair: Pair) -> None:
    session, far = session_pair
    far.sendall(encode(FrameType.CREDIT, wire.COUNT.pack(2**32 - 1)))
    far.sendall(encode(FrameType.EXITED, wire.EXITED.pack(0, 0)))
    process = GuestProcess(session, 1)
    assert process.wait(PATIENCE) == ExitStatus(0)
    assert process._credit == wire.WINDOW


def test_an_error_in_the_middle(session_pair: Pair) -> None:
    session, far = session_pair
    far.sendall(encode(FrameType.ERROR, wire.ERROR.pack(5) + b"the disk \x1b[31mburns"))
    with pytest.raises(GuestError) as caught:
        GuestProcess(session, 1).wait(PATIENCE)
    assert caught.value.message == "the disk ?[31mburns"


@pytest.mark.slow
def test_many_small_pieces_of_output_take_little_memory(session_pair: Pair) -> None:
    session, far = session_pair
    process, piece, pieces = GuestProcess(session, 1), b"ab", 100_000
    end = encode(FrameType.EXITED, wire.EXITED.pack(0, 0))
    said = encode(FrameType.STDOUT, piece) * pieces + end
    sending = threading.Thread(target=far.sendall, args=(said,))
    tracemalloc.start()
    try:
        sending.start()
        gathered = _gather(process, None)
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        far.close()
        sending.join()
    assert gathered.stdout == piece * pieces
    # As objects of their own they take 5.7 MB more.
    assert peak < 5_000_000


def test_output_of_nothing_is_not_kept(session_pair: Pair) -> None:
    session, far = session_pair
    far.sendall(encode(FrameType.STDOUT) * 1000 + encode(FrameType.CREDIT, wire.COUNT.pack(1)))
    process = GuestProcess(session, 1)
    process._credit = 0
    # Who writes receives what there is, whether or not anybody reads it.
    process.write(b"x")
    assert not process._output


@pytest.mark.parametrize(
    "frame",
    [
        encode(FrameType.STDOUT, b""),
        encode(FrameType.CREDIT, wire.COUNT.pack(0)),
        encode(FrameType.WELCOME, bytes(wire.HELLO.size)),
    ],
)
def test_frames_without_end_do_not_hold_up_a_time_limit(session_pair: Pair, frame: bytes) -> None:
    session, far = session_pair
    with _flooded(far, frame), pytest.raises(GuestTimeoutError):
        GuestProcess(session, 1).read(0.05)


def test_output_without_end_does_not_hold_up_a_time_limit(session_pair: Pair) -> None:
    session, far = session_pair
    process = GuestProcess(session, 1)
    with _flooded(far, encode(FrameType.STDOUT, b"x")):
        with pytest.raises(GuestTimeoutError):
            process.wait(0.05)
        with pytest.raises(GuestTimeoutError):
            _gather(process, time.monotonic() + 0.05)


@contextlib.contextmanager
def _flooded(far: socket.socket, frame: bytes) -> Iterator[None]:
    """A guest that sends a frame again and again, and reads what it is sent."""

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                far.sendall(frame * 1000)

    def swallow() -> None:
        with contextlib.suppress(OSError):
            while far.recv(65536):
                pass

    threads = [threading.Thread(target=each) for each in (flood, swallow)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        far.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
