"""Accepting connections: what fails is not the end, and does not keep the loop busy."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.descriptors import open_descriptors

from cerne.engine.opened import Opened
from cerne.vmm import listener as listening
from cerne.vmm.channel import Channel
from cerne.vmm.config import VsockConfig
from cerne.vmm.listener import Listener
from cerne.vmm.loop import Loop
from cerne.vmm.qmp import QmpServer
from cerne.vmm.vsock import HostSockets


class _Failing(socket.socket):
    """A listening socket whose accept(2) fails so often, and counts."""

    def __init__(self, path: Path, error: int, times: int) -> None:
        super().__init__(socket.AF_UNIX)
        self.bind(str(path))
        self.listen()
        self.tries = 0
        self._error, self._times = error, times

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        if self.tries <= self._times:
            raise OSError(self._error, os.strerror(self._error))
        return super().accept()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.mark.parametrize(
    "error",
    [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED, errno.EAGAIN],
)
def test_a_failed_accept_is_tried_again_without_spinning(
    home: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(listening, "_PATIENCE", 0.01)
    taken: list[socket.socket] = []

    def take(connection: socket.socket) -> None:
        taken.append(connection)
        loop.stop()

    failing = _Failing(home / "socket", error, times=3)
    listener = Listener(loop, failing, take)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(home / "socket"))
        loop.run()
    assert (len(taken), failing.tries) == (1, 4)
    taken[0].close()
    listener.close()


def _channel(loop: Loop, path: Path) -> Callable[[], None]:
    return Channel(loop, _listening(path), len).close


def _qmp(loop: Loop, path: Path) -> Callable[[], None]:
    return QmpServer(loop, _listening(path), {}, frozenset((os.geteuid(),))).close


def _vsock(loop: Loop, path: Path) -> Callable[[], None]:
    directory = Opened().searched(path.parent / "vsock")
    return HostSockets(loop, VsockConfig(_listening(path).detach(), directory)).close


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


@pytest.mark.parametrize("serve", [_channel, _qmp, _vsock])
def test_no_socket_of_a_machine_ends_it_where_no_descriptors_are_left(
    home: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch, serve: Callable[[Loop, Path], object]
) -> None:
    monkeypatch.setattr(listening, "_PATIENCE", 0.02)
    close = serve(loop, home / "socket")
    assert callable(close)
    before = open_descriptors()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    turns = 0
    patience = loop._patience

    def counting() -> float | None:
        nonlocal turns
        turns += 1
        return patience()

    monkeypatch.setattr(loop, "_patience", counting)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(home / "socket"))
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            loop.after(0.2, loop.stop)
            loop.run()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        # Once each time that it is tried, and not once for each look at the queue.
        assert turns < 30
        loop._running = True
        loop.after(0.1, loop.stop)
        loop.run()
        assert len(open_descriptors()) > len(before)
    close()
