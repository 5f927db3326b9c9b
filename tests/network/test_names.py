"""Names are asked of all of the host's servers."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.waiting import PATIENCE

from cerne.network.names import Answer, NameServers, host_name_servers

_QUESTION = bytes.fromhex("123401000001000000000000") + b"\x03deb\x06debian\x03org\0\0\1\0\1"
_FRAME = b"frame"


@contextlib.contextmanager
def _server(
    address: str, port: int = 0, code: int = 0, more: bytes = b"answer"
) -> Iterator[tuple[int, list[bytes]]]:
    """A name server at an address of the host's loopback, with its port and what it was asked."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    asked: list[bytes] = []
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, port))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    question, client = server.recvfrom(2048)
                    if not question:
                        return
                    asked.append(question)
                    head = question[:2] + bytes([0x81, 0x80 | code]) + question[4:]
                    server.sendto(head + more, client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1], asked
        finally:
            with socket.socket(family, socket.SOCK_DGRAM) as last:
                last.sendto(b"", server.getsockname())
            thread.join(PATIENCE)


@contextlib.contextmanager
def _silent(address: str, port: int) -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((address, port))
        yield


def _answers(names: NameServers, payload: bytes = _QUESTION) -> list[Answer]:
    """Ask, and wait as the supervisor of a card does."""
    found = names.ask(payload, _FRAME, time.monotonic())
    deadline = time.monotonic() + PATIENCE
    while not found:
        assert time.monotonic() < deadline
        wait = names.wait(time.monotonic())
        assert wait is not None
        ready = select.select(names.descriptors(), [], [], wait)[0]
        for descriptor in ready:
            found += names.receive(descriptor, time.monotonic())
        found += names.tick(time.monotonic())
    assert names.descriptors() == []
    return found


def test_the_first_that_answers_is_asked_first_next_time() -> None:
    with _server("127.0.0.3") as (port, asked), _silent("127.0.0.2", port):
        names = NameServers(lambda: ["127.0.0.2", "127.0.0.3"], port)
        for count in (1, 2):
            (answer,) = _answers(names)
            assert answer.origin == _FRAME
            assert answer.payload[-6:] == b"answer"
            assert len(asked) == count


def test_a_server_that_refuses_datagrams_is_passed_over() -> None:
    with _server("127.0.0.3") as (port, _):
        names = NameServers(lambda: ["127.0.0.2", "nonsense", "127.0.0.3"], port)
        assert _answers(names)[0].payload[-6:] == b"answer"


def test_a_server_that_fails_does_not_hide_one_that_knows() -> None:
    with _server("127.0.0.3") as (port, _), _server("127.0.0.2", port, code=2) as (_, asked):
        names = NameServers(lambda: ["127.0.0.2", "127.0.0.3"], port)
        assert _answers(names)[0].payload[3] & 0xF == 0
        assert asked


def test_the_failure_of_the_only_server_is_told() -> None:
    with _server("127.0.0.2", code=5) as (port, _):
        assert _answers(NameServers(lambda: ["127.0.0.2"], port))[0].payload[3] & 0xF == 5


def test_a_server_at_an_ipv6_address_is_asked() -> None:
    try:
        with _server("::1") as (port, _):
            assert _answers(NameServers(lambda: ["::1"], port))[0].payload[-6:] == b"answer"
    except OSError:
        pytest.skip("this host has no IPv6")


def test_without_a_server_that_answers_the_guest_is_told() -> None:
    (answer,) = _answers(NameServers(lambda: ["no address"]))
    assert answer.payload[:2] == _QUESTION[:2]
    assert answer.payload[2] & 0x80
    assert answer.payload[3] & 0xF == 2
    assert answer.payload[12:] == _QUESTION[12:]


def test_an_answer_that_does_not_fit_into_a_frame_is_cut() -> None:
    with _server("127.0.0.2", more=bytes(2000)) as (port, _):
        (answer,) = _answers(NameServers(lambda: ["127.0.0.2"], port))
    assert answer.payload[2] & 0x02
    assert answer.payload[12:] == _QUESTION[12:]


def test_answers_to_other_questions_are_not_taken() -> None:
    other = bytearray(_QUESTION)
    other[13] = ord("x")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.2", 0))
        names = NameServers(lambda: ["127.0.0.2"], server.getsockname()[1])
        assert names.ask(_QUESTION, _FRAME, 0) == []
        _, client = server.recvfrom(2048)
        (descriptor,) = names.descriptors()
        for wrong in (b"", b"\0\0" + _QUESTION[2:], bytes(other), _QUESTION):
            server.sendto(wrong, client)
            select.select([descriptor], [], [], PATIENCE)
            assert names.receive(descriptor, 0) == []
        right = _QUESTION[:2] + b"\x81\x80" + _QUESTION[4:]
        server.sendto(right, client)
        select.select([descriptor], [], [], PATIENCE)
        (answer,) = names.receive(descriptor, 0)
        assert (answer.origin, answer.payload) == (_FRAME, right)


def test_a_guest_has_no_end_of_questions() -> None:
    with _silent("127.0.0.2", 0):
        names = NameServers(lambda: ["127.0.0.2"], 9)
        for number in range(300):
            names.ask(struct.pack("!H", number) + _QUESTION[2:], _FRAME, 0)
        assert len(names.descriptors()) <= 64
        names.close()
        assert names.descriptors() == []


@given(st.binary(max_size=80))
def test_any_question_is_taken(payload: bytes) -> None:
    names = NameServers(list)
    for answer in names.ask(payload, _FRAME, 0):
        assert answer.payload[:2] == payload[:2]


def _root(path: Path, resolv: str | None, behind: str | None = None) -> Path:
    (path / "etc").mkdir()
    if resolv is not None:
        (path / "etc/resolv.conf").write_text(resolv)
    if behind is not None:
        (path / "run/systemd/resolve").mkdir(parents=True)
        (path / "run/systemd/resolve/resolv.conf").write_text(behind)
    return path


@pytest.mark.parametrize(
    ("resolv", "behind", "expected"),
    [
        ("nameserver 192.0.2.1\nnameserver 192.0.2.2\n", None, ["192.0.2.1", "192.0.2.2"]),
        ("# c\nsearch a b\nnameserver\t2001:db8::1 # six\n", None, ["2001:db8::1"]),
        ("nameserver fe80::1%eth0\n", None, ["fe80::1%eth0"]),
        (
            "nameserver 127.0.0.53\noptions edns0\n",
            "nameserver 192.0.2.1\nnameserver 127.0.0.53\n",
            ["127.0.0.53", "192.0.2.1"],
        ),
        ("nameserver\n", None, ["127.0.0.1"]),
        ("", None, ["127.0.0.1"]),
        (None, None, ["127.0.0.1"]),
    ],
)
def test_odd_resolv_confs(
    tmp_path: Path, resolv: str | None, behind: str | None, expected: list[str]
) -> None:
    assert host_name_servers(str(_root(tmp_path, resolv, behind))) == expected


@pytest.mark.parametrize(("kind", "found"), [(1, True), (28, False)])
def test_the_gateway_has_a_name(kind: int, found: bool) -> None:
    name = b"\4HOST\5cerne\x08internal\0"
    question = _QUESTION[:12] + name + bytes([0, kind, 0, 1])
    (answer,) = NameServers(list).ask(question, _FRAME, 0)
    assert answer.payload[2:4] == b"\x81\x80"
    assert answer.payload[7] == int(found)
    assert answer.payload.endswith(socket.inet_aton("10.0.2.2")) == found
