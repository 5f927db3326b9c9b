"""CPUs that are plugged into QEMU, which only pretends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from cerne.engine.qemu.cpus import add_cpus
from cerne.engine.qmp import QmpClient
from cerne.errors import EngineError


class FakeQemu:
    """A board with room for four CPUs, which names the last first, as QEMU does."""

    def __init__(self, present: int) -> None:
        self.places: list[dict[str, object]] = [
            {
                "type": "max-x86_64-cpu",
                "vcpus-count": 1,
                "props": {"socket-id": 0, "core-id": core, "thread-id": 0},
                **({"qom-path": f"/machine/unattached/device[{core}]"} if core < present else {}),
            }
            for core in reversed(range(4))
        ]
        self.added: list[Mapping[str, object]] = []

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        if command == "query-hotpluggable-cpus":
            return self.places
        assert command == "device_add"
        assert arguments is not None
        self.added.append(arguments)
        return {}


def test_they_are_plugged_in_in_their_order() -> None:
    qemu = FakeQemu(1)
    add_cpus(cast(QmpClient, qemu), 3)
    assert [(each["id"], each["core-id"]) for each in qemu.added] == [("cpu1", 1), ("cpu2", 2)]
    assert {each["driver"] for each in qemu.added} == {"max-x86_64-cpu"}


def test_what_is_there_is_not_plugged_in_again() -> None:
    qemu = FakeQemu(3)
    add_cpus(cast(QmpClient, qemu), 3)
    add_cpus(cast(QmpClient, qemu), 2)
    assert qemu.added == []


def test_a_board_without_room_is_an_error() -> None:
    qemu = FakeQemu(1)
    with pytest.raises(EngineError, match="room for 4 CPUs"):
        add_cpus(cast(QmpClient, qemu), 5)
    assert qemu.added == []
