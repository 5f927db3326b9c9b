"""The control socket: by raw lines, and by the client that both engines are spoken to with."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.waiting import PATIENCE

from cerne.engine.qmp import QmpClient
from cerne.errors import EngineError
from cerne.vmm.loop import Loop
from cerne.vmm.qmp import Command, Later, QmpServer, Request


class _Served:
    """A server whose loop runs in a thread."""

    def __init__(self, path: Path, user: int) -> None:
        self.path = path
        self.loop = Loop()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        commands: dict[str, Command] = {
            "query-status": lambda _: {"status": "running"},
            "stop": self._stop,
            "take-long": lambda _: Later(self._take_long),
            "first-words": lambda request: {"words": os.read(request.descriptor(0), 100).decode()},
        }
        self.may_end = threading.Event()
        self.server = QmpServer(self.loop, listener, commands, frozenset((user,)))
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _take_long(self) -> object:
        assert self.may_end.wait(PATIENCE)
        return {"took": "long"}

    def _stop(self, _: Request) -> object:
        self.server.emit("STOP")
        return {}

    def close(self) -> None:
        self.loop.ask(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


@pytest.fixture
def served(home: Path) -> Iterator[_Served]:
    made = _Served(home / "qmp.sock", os.geteuid())
    yield made
    made.close()


def _connect(served: _Served) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(served.path))
    assert "QMP" in _line(connection)
    return connection


def _line(connection: socket.socket) -> dict[str, object]:
    text = b""
    while not text.endswith(b"\n"):
        piece = connection.recv(1)
        assert piece, "the server hung up"
        text += piece
    answer: dict[str, object] = json.loads(text)
    return answer


def test_another_user_is_not_greeted(home: Path) -> None:
    served = _Served(home / "qmp.sock", os.geteuid() + 1)
    with contextlib.closing(served), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(served.path))
        assert connection.recv(1) == b""


def test_the_client_of_both_engines_works_on_it(served: _Served) -> None:
    with QmpClient(served.path) as one, QmpClient(served.path) as two:
        assert (one.status(), two.status()) == ("running", "running")
        one.stop()
        assert two.wait_event("STOP", timeout=PATIENCE).name == "STOP"
        with pytest.raises(EngineError, match="has not been found"):
            one.execute("device_add")


def test_capabilities_come_first(served: _Served) -> None:
    connection = _connect(served)
    connection.send(b'{"execute": "query-status", "id": 7}')
    refused = _line(connection)
    assert (refused["id"], "error" in refused) == (7, True)
    # Two requests in one piece, and one in two.
    connection.send(b'{"execute": "qmp_capabilities"}{"execute": "query-st')
    assert _line(connection) == {"return": {}}
    connection.send(b'atus", "id": "a"}')
    assert _line(connection) == {"return": {"status": "running"}, "id": "a"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200).filter(lambda noise: noise.strip() != b""))
def test_noise_does_no_harm(served: _Served, noise: bytes) -> None:
    connection = _connect(served)
    connection.send(noise + b"\n")
    connection.close()
    with QmpClient(served.path) as client:
        assert client.status() == "running"


def test_descriptors_belong_to_the_command_after_them(served: _Served, tmp_path: Path) -> None:
    path = tmp_path / "words"
    path.write_text("hello")
    with path.open() as file, QmpClient(served.path) as client:
        sent = [file.fileno()]
        assert client.execute("first-words", descriptors=sent) == {"words": "hello"}
        with pytest.raises(EngineError, match="was not sent"):
            client.execute("first-words")


def test_what_is_no_utf8_does_not_swallow_what_follows(served: _Served) -> None:
    with _connect(served) as connection:
        connection.sendall(b'{"execute":"\xff"}{"execute":"qmp_capabilities","id":7}\n')
        assert "error" in _line(connection)
        assert _line(connection) == {"return": {}, "id": 7}


def test_the_loop_serves_others_while_a_command_takes_long(served: _Served) -> None:
    with _connect(served) as slow, QmpClient(served.path) as other:
        slow.send(b'{"execute": "qmp_capabilities"}{"execute": "take-long", "id": 1}')
        slow.send(b'{"execute": "query-status", "id": 2}')
        assert _line(slow) == {"return": {}}
        # It is not answered, and the loop is free.
        assert other.status() == "running"
        served.may_end.set()
        assert _line(slow) == {"return": {"took": "long"}, "id": 1}
        assert _line(slow) == {"return": {"status": "running"}, "id": 2}


def test_a_client_may_go_while_its_command_takes_long(served: _Served) -> None:
    with _connect(served) as slow:
        slow.send(b'{"execute": "qmp_capabilities"}{"execute": "take-long"}')
        assert _line(slow) == {"return": {}}
    served.may_end.set()
    with QmpClient(served.path) as other:
        assert other.status() == "running"


def test_descriptors_that_found_no_room_are_told_of(served: _Served, tmp_path: Path) -> None:
    (tmp_path / "words").write_text("hello")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (tmp_path / "words").open() as file, _connect(served) as client:
        client.send(b'{"execute": "qmp_capabilities"}')
        assert _line(client) == {"return": {}}
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            socket.send_fds(client, [b'{"execute": "first-words"}'], [file.fileno()])
            refused = str(_line(client)["error"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert "raise the hard limit" in refused
        socket.send_fds(client, [b'{"execute": "first-words"}'], [file.fileno()])
        assert _line(client) == {"return": {"words": "hello"}}
