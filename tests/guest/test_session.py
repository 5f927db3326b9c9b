"""Ports: claiming them, coming into step after a client that died, waiting for a guest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.waiting import PATIENCE

import cerne.guest.session as session_module
from cerne.errors import BusyError, GuestError, GuestTimeoutError
from cerne.guest import GuestAgent, wire
from cerne.guest.session import Port, Session
from cerne.guest.wire import FrameType, encode

_NO_EXEC = [kind for kind in FrameType if kind is not FrameType.ARGUMENTS]


def _raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def _greeted(path: Path) -> socket.socket:
    connection = _raw(path)
    nonce = os.urandom(wire.NONCE_SIZE)
    connection.sendall(encode(FrameType.HELLO, wire.HELLO.pack(wire.MAGIC, 1, nonce)))
    heard = b""
    while nonce not in heard:
        heard += connection.recv(65536)
    return connection


def _mark_as_cut_off(path: Path) -> None:
    Path(f"{path}.lock").write_bytes(b"1")


def test_ready(agent: GuestAgent) -> None:
    agent.wait_ready(20)


@pytest.mark.parametrize("said", [1, 7, 8, 9, 5000])
def test_a_client_that_died_in_a_frame(agent: GuestAgent, port: Port, said: int) -> None:
    frame = encode(FrameType.DATA, bytes(range(256)) * 128)
    with _greeted(port.path) as dead:
        dead.sendall(frame[:said])
    _mark_as_cut_off(port.path)
    assert agent.run(["echo", "alive"], timeout=PATIENCE).stdout == b"alive\n"


def test_a_cut_off_frame_that_nobody_knows_of(agent: GuestAgent, port: Port) -> None:
    with _greeted(port.path) as dead:
        dead.sendall(encode(FrameType.DATA, bytes(wire.MAX_PAYLOAD))[:100])
    assert agent.run(["echo", "alive"], timeout=PATIENCE).stdout == b"alive\n"


def test_output_of_a_former_session_is_passed_over(agent: GuestAgent) -> None:
    for _ in range(3):
        process = agent.popen(["sh", "-c", "yes"])
        assert process.read(20) is not None
        process.close()
        assert agent.run(["echo", "mine"], timeout=PATIENCE).stdout == b"mine\n"


def test_a_clean_end_leaves_a_clean_lock(agent: GuestAgent, port: Port) -> None:
    lock = Path(f"{port.path}.lock")
    agent.run(["true"])
    assert lock.stat().st_size == 0
    agent.run(["cat"], stdin=b"x")
    assert lock.stat().st_size == 1
    agent.run(["true"])
    assert lock.stat().st_size == 0


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(_NO_EXEC), st.binary(max_size=100))), st.binary())
def test_an_agent_outlives_nonsense(
    agent: GuestAgent, port: Port, frames: list[tuple[FrameType, bytes]], tail: bytes
) -> None:
    with _greeted(port.path) as connection, contextlib.suppress(BrokenPipeError):
        connection.sendall(b"".join(encode(*frame) for frame in frames) + tail)
    _mark_as_cut_off(port.path)
    agent.wait_ready(20)


def test_each_call_takes_a_port(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_CLAIM_TIMEOUT", 0.05)
    agent = GuestAgent([port.path])
    with agent.popen(["cat"]), pytest.raises(BusyError, match="all 1 of the guest's agent ports"):
        agent.run(["true"])
    assert agent.run(["true"]).status == 0


def test_a_port_that_comes_free_is_waited_for(port: Port) -> None:
    agent = GuestAgent([port.path])
    process = agent.popen(["cat"])
    threading.Timer(0.1, process.close).start()
    assert agent.run(["true"]).status == 0


def test_another_process_s_port_is_left_alone(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_CLAIM_TIMEOUT", 0.05)
    with Path(f"{port.path}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError):
            GuestAgent([port.path]).info()


def test_a_machine_that_does_not_run(home: Path) -> None:
    with pytest.raises(GuestError, match="does not run"):
        GuestAgent([home / "gone" / "agent0.sock"]).info()


def test_a_guest_that_says_nothing(home: Path) -> None:
    path = home / "agent0.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(GuestTimeoutError, match=r"not ready after 0\.3 s"):
            GuestAgent([path]).wait_ready(0.3)


def test_a_machine_that_ends_before_it_is_ready(home: Path) -> None:
    with pytest.raises(GuestError, match="ended before its agent answered"):
        GuestAgent([home / "agent0.sock"]).wait_ready(20, alive=lambda: False)


def test_a_socket_that_comes_late(port: Port) -> None:
    late = port.path.with_name("late.sock")
    threading.Timer(0.1, lambda: late.symlink_to(port.path)).start()
    GuestAgent([late]).wait_ready(20)


def test_a_guest_that_drops_the_first_hello(
    session_pair: tuple[Session, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_SAY_AGAIN", 0.05)
    monkeypatch.setattr(session_module, "_LOOK", 0.01)
    session, far = session_pair

    def answer_the_second() -> None:
        heard = b""
        while heard.count(wire.MAGIC) < 2:
            heard += far.recv(65536)
        hello = heard[heard.rindex(wire.MAGIC) :][: wire.HELLO.size]
        # First what is left of a former session, in the middle of a frame.
        far.sendall(b"tail of something" + encode(FrameType.WELCOME, hello))

    thread = threading.Thread(target=answer_the_second)
    thread.start()
    session.greet(time.monotonic() + PATIENCE)
    thread.join()


def test_nothing_is_said_twice_to_a_guest_that_has_not_read(
    session_pair: tuple[Session, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "_SAY_AGAIN", 0.01)
    monkeypatch.setattr(session_module, "_LOOK", 0.01)
    session, far = session_pair
    with pytest.raises(GuestTimeoutError):
        session.greet(time.monotonic() + 0.2)
    assert far.recv(1 << 20).count(wire.MAGIC) == 1
    far.setblocking(False)
    with pytest.raises(BlockingIOError):
        far.recv(1)


def test_another_version(session_pair: tuple[Session, socket.socket]) -> None:
    session, far = session_pair

    def answer() -> None:
        heard = b""
        while wire.MAGIC not in heard or len(heard.partition(wire.MAGIC)[2]) < 20:
            heard += far.recv(65536)
        nonce = heard.partition(wire.MAGIC)[2][4:20]
        far.sendall(encode(FrameType.WELCOME, wire.HELLO.pack(wire.MAGIC, 99, nonce)))

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(GuestError, match="version 99") as caught:
        session.greet(time.monotonic() + PATIENCE)
    thread.join()
    assert caught.value.hint


def test_an_agent_that_starts_anew(session_pair: tuple[Session, socket.socket]) -> None:
    session, far = session_pair
    far.sendall(encode(FrameType.RESTARTED))
    with pytest.raises(GuestError, match="restarted"):
        session.receive(20)


def test_a_machine_that_ends(session_pair: tuple[Session, socket.socket]) -> None:
    session, far = session_pair
    far.close()
    with pytest.raises(GuestError, match="the machine has ended"):
        session.receive(20)


def test_an_answer_of_another_kind(session_pair: tuple[Session, socket.socket]) -> None:
    session, far = session_pair
    far.sendall(encode(FrameType.STDOUT, b"x") + encode(FrameType.ERROR, b"x"))
    with pytest.raises(GuestError, match="STDOUT instead of DONE"):
        session.expect(FrameType.DONE, 20)
    with pytest.raises(GuestError, match="an error that is not valid"):
        session.expect(FrameType.DONE, 20)


def test_a_request_that_an_old_agent_does_not_know(
    session_pair: tuple[Session, socket.socket],
) -> None:
    session, far = session_pair
    far.sendall(encode(FrameType.ERROR, wire.ERROR.pack(errno.ENOSYS) + b"request 20"))
    with pytest.raises(GuestError, match="too old for this: request 20") as caught:
        session.expect(FrameType.DONE, 20)
    assert "again" in caught.value.hint


def test_urgent_frames_from_within_a_send(session_pair: tuple[Session, socket.socket]) -> None:
    session, far = session_pair
    # As a signal handler would, while a frame is on its way.
    with session._sending:
        session.send_urgent(FrameType.RESIZE, wire.SIZE.pack(1, 2))
    session.send(FrameType.STDIN, b"x")
    assert far.recv(100) == encode(FrameType.STDIN, b"x") + encode(
        FrameType.RESIZE, wire.SIZE.pack(1, 2)
    )
