"""The cable of a network card, whose other end may go and come back."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.vmm.cable import Cable
from cerne.vmm.config import BACKEND_SOCKET, NicConfig
from cerne.vmm.loop import Loop

_MAC = "02:00:00:00:00:01"

Eventually = Callable[[Callable[[], bool]], None]
Plug = Callable[[NicConfig], Cable]


@pytest.fixture
def plug() -> Iterator[Plug]:
    """Makes a cable whose loop runs."""
    loop = Loop()
    thread = threading.Thread(target=loop.run)
    made: list[Cable] = []

    def make(nic: NicConfig) -> Cable:
        made.append(Cable(loop, nic))
        thread.start()
        return made[-1]

    yield make
    loop.ask(loop.stop)
    thread.join(PATIENCE)
    for cable in made:
        cable.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(str(tmp_path / BACKEND_SOCKET))
        listener.listen()
        yield listener


def test_it_is_put_into_what_took_the_place_of_its_other_end(
    tmp_path: Path, listener: socket.socket, plug: Plug, eventually: Eventually
) -> None:
    link = socket.socket(socket.AF_UNIX)
    link.connect(str(tmp_path / BACKEND_SOCKET))
    address = os.open(tmp_path, os.O_PATH)
    cable = plug(NicConfig(_MAC, link.detach(), address=address))
    for _ in range(3):
        listener.accept()[0].close()
    last, _ = listener.accept()
    eventually(lambda: cable.card.link_up and cable.card.wants_read)
    assert cable.card.config()[6] == 1
    # From now on nobody takes its place.
    listener.close()
    last.close()
    eventually(lambda: not cable.card.link_up)
    assert cable.card.config()[6] == 0


def test_without_an_address_it_stays_down(plug: Plug, eventually: Eventually) -> None:
    ours, theirs = socket.socketpair()
    cable = plug(NicConfig(_MAC, ours.detach()))
    theirs.close()
    eventually(lambda: not cable.card.link_up)
