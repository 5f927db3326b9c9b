"""The cable of a network card, whose other end may go."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.waiting import PATIENCE

from cerne.vmm.cable import Cable
from cerne.vmm.config import NicConfig
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


def test_it_stays_down_without_its_other_end(plug: Plug, eventually: Eventually) -> None:
    ours, theirs = socket.socketpair()
    cable = plug(NicConfig(_MAC, ours.detach()))
    assert cable.card.config()[6] == 1
    theirs.close()
    eventually(lambda: not cable.card.link_up)
    assert cable.card.config()[6] == 0
