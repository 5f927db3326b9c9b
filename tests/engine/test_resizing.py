"""How a guest is asked for memory by QMP, and what is said of those that do nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from tests.engine.test_qmp import Message, Serve

from cerne.engine.qmp import QmpClient, memory
from cerne.engine.qmp.memory import BLOCK_SIZE, memory_of, resize
from cerne.errors import CapacityError, CerneError, GuestError, InputError, StateError
from cerne.units import MIB

_BASE = 256 * MIB


class _Guest:
    """A machine's process whose guest plugs a block at each look, between two bounds."""

    def __init__(self, *, least: int = 0, most: int = 8, device: bool = True) -> None:
        self.requests: list[int] = []
        self.plugged = 0
        self._wanted = 0
        self._bounds = (least, most)
        self._device = device

    def answer(self, message: Message) -> list[Message]:
        command = message["execute"]
        if command == "query-memory-size-summary":
            return [{"return": {"base-memory": _BASE, "plugged-memory": self.plugged}}]
        if command == "qom-set":
            arguments = cast("dict[str, int]", message["arguments"])
            self._wanted = arguments["value"]
            self.requests.append(self._wanted // BLOCK_SIZE)
        if command != "query-memory-devices":
            return [{"return": {}}]
        data = {
            "requested-size": self._wanted,
            "size": self.plugged,
            "max-size": 8 * BLOCK_SIZE,
            "block-size": BLOCK_SIZE,
        }
        self._step()
        return [{"return": [{"type": "virtio-mem", "data": data}] if self._device else []}]

    def _step(self) -> None:
        least, most = (bound * BLOCK_SIZE for bound in self._bounds)
        target = min(most, max(least, self._wanted))
        if self.plugged != target:
            self.plugged += BLOCK_SIZE if target > self.plugged else -BLOCK_SIZE


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_MOMENT", 0.001)
    monkeypatch.setattr(memory, "_PATIENCE", 0.2)
    monkeypatch.setattr(memory, "_LONG_PATIENCE", 0.2)


def _connect(serve: Serve, guest: _Guest) -> Callable[[], QmpClient]:
    path: Path = serve(guest.answer).path
    return lambda: QmpClient(path)


def test_it_waits_until_the_guest_has_plugged_and_given_back(serve: Serve) -> None:
    guest = _Guest()
    connect = _connect(serve, guest)
    assert resize(connect, _BASE + 3 * BLOCK_SIZE, "web") == _BASE + 3 * BLOCK_SIZE
    assert guest.plugged == 3 * BLOCK_SIZE
    assert resize(connect, _BASE + BLOCK_SIZE, "web") == _BASE + BLOCK_SIZE
    with connect() as qmp:
        found = memory_of(qmp)
    assert found is not None
    assert (found.size, found.plugged) == (_BASE + BLOCK_SIZE, BLOCK_SIZE)
    assert guest.requests == [3, 1]


def test_a_guest_that_does_nothing_has_what_it_had(serve: Serve) -> None:
    guest = _Guest(most=0)
    with pytest.raises(GuestError, match="no driver for virtio-mem") as said:
        resize(_connect(serve, guest), _BASE + BLOCK_SIZE, "web")
    assert "cerne set web --memory 384M" in said.value.hint
    assert guest.requests == [1, 0]


def test_a_slow_guest_may_continue_and_one_that_keeps_memory_has_it(serve: Serve) -> None:
    guest = _Guest(most=2)
    connect = _connect(serve, guest)
    assert resize(connect, _BASE + 4 * BLOCK_SIZE, "web") == _BASE + 2 * BLOCK_SIZE
    assert guest.requests == [4]
    guest = _Guest(least=1)
    connect = _connect(serve, guest)
    resize(connect, _BASE + 3 * BLOCK_SIZE, "web")
    assert resize(connect, _BASE, "web") == _BASE + BLOCK_SIZE
    assert guest.requests == [3, 0, 1]
    with pytest.raises(GuestError, match="gives no memory back"):
        resize(connect, _BASE, "web")
    assert guest.requests[-1] == 1


@pytest.mark.parametrize(
    ("size", "kind", "words"),
    [
        (_BASE - MIB, InputError, "gives none of this back"),
        (_BASE + MIB, InputError, "by whole blocks of 128M"),
        (_BASE + 9 * BLOCK_SIZE, CapacityError, "can have 1.2G"),
    ],
)
def test_what_is_not_possible_is_refused_before_the_guest_is_asked(
    serve: Serve, size: int, kind: type[CerneError], words: str
) -> None:
    guest = _Guest()
    with pytest.raises(kind, match=words):
        resize(_connect(serve, guest), size, "web")
    assert guest.requests == []


def test_a_machine_without_the_device_says_what_to_do(serve: Serve) -> None:
    guest = _Guest(device=False)
    with pytest.raises(StateError, match="has no device to plug memory") as said:
        resize(_connect(serve, guest), _BASE + BLOCK_SIZE, "web")
    assert "cerne stop web; cerne set web --memory 384M; cerne start web" in said.value.hint
