"""A backend that goes and comes while its device is there: who waits for it, and what is said."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.devices.vhost_backend import VhostBackend
from tests.waiting import PATIENCE

from cerne.devices.vhost_user.device import VhostUserBlock
from cerne.devices.vhost_user.messages import BackendError
from cerne.vmm.backend import Backend
from cerne.vmm.config import BACKEND_SOCKET, BackendConfig

Eventually = Callable[[Callable[[], bool]], None]


@dataclass
class Place:
    """Where backends listen, one after the other."""

    listener: socket.socket
    path: Path

    def connect(self) -> int:
        """A connection, for the device."""
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self.path))
        return link.detach()

    def serve(self, **how: int) -> VhostBackend:
        """A backend for whoever is connected, or connects next."""
        return VhostBackend(connection=self.listener.accept()[0], **how)  # type: ignore[arg-type]

    def address(self) -> int:
        return os.open(self.path.parent, os.O_PATH)


@pytest.fixture
def place(home: Path) -> Iterator[Place]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / BACKEND_SOCKET))
        listener.listen()
        listener.settimeout(PATIENCE)
        yield Place(listener, home / BACKEND_SOCKET)


def _disk(place: Place, **rest: int) -> tuple[Backend, VhostBackend]:
    link = place.connect()
    server = place.serve()
    make = partial(VhostUserBlock, queues=1)
    backend = Backend("the disk", BackendConfig(link, **rest), make)
    backend.start()
    return backend, server


def test_a_backend_is_lost_and_found(
    place: Place, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    backend, server = _disk(place, address=place.address())
    for _ in range(2):
        server.die()
        server = place.serve()
        eventually(lambda: backend.device.connected)
    backend.finish()
    server.die()
    said = capsys.readouterr().err.splitlines()
    assert (
        said
        == ["the disk is lost: the backend closed the connection", "the disk has come back"] * 2
    )


def test_one_that_is_of_no_use_is_not_the_last(
    place: Place, eventually: Eventually, capsys: pytest.CaptureFixture[str]
) -> None:
    backend, server = _disk(place, address=place.address())
    server.die()
    place.serve(features=1 << 30).die()
    last = place.serve()
    eventually(lambda: backend.device.connected)
    backend.finish()
    last.die()
    assert "the disk does not come back: " in capsys.readouterr().err


def test_a_backend_that_cannot_be_found_again_is_only_missed(
    place: Place, eventually: Eventually
) -> None:
    backend, server = _disk(place)
    server.die()
    eventually(lambda: not backend.device.connected)
    backend.finish()


def test_one_that_never_was_of_use_is_named(place: Place) -> None:
    link = place.connect()
    server = place.serve(features=1 << 30)
    with pytest.raises(BackendError, match="the disk: the backend does not speak virtio 1"):
        Backend("the disk", BackendConfig(link), partial(VhostUserBlock, queues=1))
    server.die()


def test_its_supervisor_is_told_of_an_orderly_end(place: Place) -> None:
    ours, theirs = socket.socketpair()
    backend, server = _disk(place, leash=ours.detach())
    told: list[bytes] = []

    def keep() -> None:
        told.append(theirs.recv(16))
        theirs.close()

    supervisor = threading.Thread(target=keep)
    supervisor.start()
    backend.finish()
    supervisor.join(PATIENCE)
    assert told == [b"end"]
    server.die()
