"""Asking a machine's process about its balloon, which may answer anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.engine.test_qmp import Message, Serve

from cerne.engine.base import GuestMemoryUse
from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.balloon import guest_memory_use, leave_memory
from cerne.errors import StateError
from cerne.units import MIB

_NOT_ACTIVE: Message = {"class": "DeviceNotActive", "desc": "No balloon device has been activated"}


def _serve(serve: Serve, actual: object, stats: object, updated: object) -> Path:
    def script(command: Message) -> list[Message]:
        answers: dict[object, object] = {
            "query-balloon": {"actual": actual},
            "qom-get": {"stats": stats, "last-update": updated},
        }
        return [{"return": answers.get(command["execute"], {})}]

    return serve(script).path


def _use(socket: Path, *, runs: bool = True) -> GuestMemoryUse | None:
    return guest_memory_use(socket, 512 * MIB, runs=runs)


def _told(total: int, available: int) -> dict[str, object]:
    return {"stat-total-memory": total * MIB, "stat-available-memory": available * MIB}


def test_what_is_in_the_balloon_is_not_used(serve: Serve) -> None:
    socket = _serve(serve, 256 * MIB, _told(480, 150), int(time.time()) + 1)
    assert _use(socket) == GuestMemoryUse(256 * MIB, (480 - 150 - 256) * MIB)
    assert _use(socket, runs=False) == GuestMemoryUse(256 * MIB, None)


@pytest.mark.parametrize(
    ("actual", "stats", "used"),
    [
        (512 * MIB, {}, None),
        (512 * MIB, {"stat-total-memory": (1 << 64) - 1, "stat-available-memory": 1}, None),
        (512 * MIB, {"stat-total-memory": True, "stat-available-memory": "1"}, None),
        (512 * MIB, "nothing", None),
        (512 * MIB, _told(100, 500), 0),
    ],
)
def test_whatever_a_guest_says_is_looked_at(
    serve: Serve, actual: object, stats: object, used: int | None
) -> None:
    socket = _serve(serve, actual, stats, int(time.time()) + 1)
    assert _use(socket) == GuestMemoryUse(512 * MIB, used)


def test_what_a_guest_said_long_ago_does_not_count(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.engine.qmp.balloon._PATIENCE", 0.05)
    socket = _serve(serve, 512 * MIB, _told(480, 150), 7)
    assert _use(socket) == GuestMemoryUse(512 * MIB, None)


def test_a_machine_without_a_balloon(serve: Serve) -> None:
    path = serve(lambda _: [{"error": _NOT_ACTIVE}]).path
    assert guest_memory_use(path, 512 * MIB) is None
    with QmpClient(path) as qmp, pytest.raises(StateError, match="no balloon") as caught:
        leave_memory(qmp, 256 * MIB, "web")
    assert caught.value.hint == "boot it: cerne restart web"
