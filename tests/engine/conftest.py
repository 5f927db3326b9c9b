"""Fixtures of the engines' tests: a QMP server of a few lines, and plans of machines."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from tests.engine.fleet import COUNTER, Fleet
from tests.waiting import PATIENCE

Message: TypeAlias = dict[str, object]
Script: TypeAlias = Callable[[Message], list[Message] | None]

GREETING: Message = {
    "QMP": {
        "version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""},
        "capabilities": ["oob"],
    }
}


class FakeQmpServer:
    """Speaks QMP on a socket: greets, then answers each command as its script says.

    The script is given each command and returns the messages to send (the command's id is added
    to those that are an answer), or None to hang up. `commands` is the exact sequence received.
    """

    def __init__(self, path: Path, script: Script, greeting: bytes) -> None:
        self.path = path
        self.commands: list[str] = []
        self._script = script
        self._greeting = greeting
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if self._listener.fileno() == -1:
            return
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        connection.sendall(self._greeting)
        for command in _commands(connection):
            answers = self._answers(command)
            if answers is None:
                return
            for answer in answers:
                connection.sendall(json.dumps(answer).encode() + b"\r\n")

    def _answers(self, command: Message) -> list[Message] | None:
        name = str(command["execute"])
        self.commands.append(name)
        answers = [{"return": {}}] if name == "qmp_capabilities" else self._script(command)
        if answers is None:
            return None
        # Negotiation carries no id, as in qemu.qmp.
        identity = {"id": command["id"]} if "id" in command else {}
        return [answer if "event" in answer else answer | identity for answer in answers]


def _commands(connection: socket.socket) -> Iterator[Message]:
    # QMP puts nothing between a client's messages: each ends where its JSON does.
    buffer = ""
    while chunk := connection.recv(4096):
        buffer = (buffer + chunk.decode()).lstrip()
        while buffer:
            try:
                command, end = json.JSONDecoder().raw_decode(buffer)
            except json.JSONDecodeError:
                break
            buffer = buffer[end:].lstrip()
            yield command


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def serve(directory: Path) -> Iterator[Callable[..., FakeQmpServer]]:
    """Makes a `FakeQmpServer` that runs a script."""
    servers: list[FakeQmpServer] = []

    def make(script: Script, greeting: bytes | None = None) -> FakeQmpServer:
        line = json.dumps(GREETING).encode() + b"\r\n" if greeting is None else greeting
        server = FakeQmpServer(directory / f"{len(servers)}.sock", script, line)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def fleet(
    home: Path, kvm_device: Path, small_kernel: Callable[[Path, bytes], Path]
) -> Iterator[Fleet]:
    with contextlib.closing(Fleet(home, small_kernel(home / "kernel", COUNTER))) as made:
        made.start("a")
        assert made.say("a", b"ii") == 2
        yield made
