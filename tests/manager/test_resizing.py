"""Memory of machines that run: what is promised, what guests have, what a killed command left."""

from __future__ import annotations

import logging

import pytest
from tests.manager.conftest import FakeEngine
from tests.manager.killed import adjust_killed_at

from cerne.errors import CapacityError, EngineError, GuestError, StateError
from cerne.manager import Machine, Manager
from cerne.manager.store.promises import Resource
from cerne.units import MIB


@pytest.fixture
def running(machine: Machine) -> Machine:
    machine.start()
    return machine


def _promised(manager: Manager) -> int:
    promises = manager.capacity().promises
    return sum(each.amount for each in promises if each.resource is Resource.MEMORY)


def _memory(machine: Machine) -> tuple[int, int]:
    return machine.spec.memory, machine.record.memory


def test_it_has_more_at_once_and_at_its_next_start(
    manager: Manager, running: Machine, engine: FakeEngine, asked: list[str]
) -> None:
    running.adjust(memory="192M")
    assert asked == [f"resize_memory {192 * MIB}"]
    assert _memory(running) == (192 * MIB, 192 * MIB)
    assert _promised(manager) == 192 * MIB
    running.kill()
    running.start()
    assert engine.plans[-1].memory == 192 * MIB


def test_a_balloon_is_set_anew_for_the_other_memory(running: Machine, asked: list[str]) -> None:
    running.adjust(balloon="48M")
    running.adjust(memory="192M")
    assert asked[-2:] == [f"resize_memory {192 * MIB}", f"set_memory {48 * MIB}"]


def test_what_the_host_has_not_is_refused_before_the_guest_is_asked(
    manager: Manager, running: Machine, asked: list[str]
) -> None:
    has = next(each.has for each in manager.capacity().accounts if each.resource is Resource.MEMORY)
    with pytest.raises(CapacityError):
        running.adjust(memory=f"{has // MIB}M")
    assert asked == []
    assert _memory(running) == (64 * MIB, 64 * MIB)


def test_a_guest_that_plugs_slowly_is_told_of_and_keeps_its_promise(
    manager: Manager, running: Machine, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.guest_has = 128 * MIB
    with caplog.at_level(logging.WARNING):
        running.adjust(memory="192M")
    assert "has plugged 128M of its 192M so far" in caplog.text
    assert _memory(running) == (192 * MIB, 192 * MIB)
    assert _promised(manager) == 192 * MIB


def test_a_guest_that_keeps_some_is_told_of_and_has_it_promised(
    manager: Manager, running: Machine, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    running.adjust(memory="320M")
    engine.guest_has = 192 * MIB
    with caplog.at_level(logging.WARNING):
        running.adjust(memory="64M")
    assert "gave back 128M, and keeps the rest" in caplog.text
    assert _memory(running) == (192 * MIB, 192 * MIB)
    assert _promised(manager) == 192 * MIB


@pytest.mark.parametrize("failure", [GuestError("it has no driver"), KeyboardInterrupt()])
def test_a_failure_leaves_what_it_had(
    manager: Manager,
    running: Machine,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    def fail(*_: object) -> int:
        raise failure

    monkeypatch.setattr("tests.manager.conftest.FakeInstance.resize_memory", fail)
    with pytest.raises(type(failure)):
        running.adjust(memory="192M")
    assert _memory(running) == (64 * MIB, 64 * MIB)
    assert _promised(manager) == 64 * MIB
    assert running.record.doing == ""


def test_what_fails_afterwards_has_the_memory_put_back(
    running: Machine, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise EngineError("no")

    monkeypatch.setattr("tests.manager.conftest.FakeInstance.set_memory", fail)
    with pytest.raises(EngineError):
        running.adjust(memory="192M", balloon="128M")
    assert asked == [f"resize_memory {192 * MIB}", f"resize_memory {64 * MIB}"]
    assert _memory(running) == (64 * MIB, 64 * MIB)


def test_a_paused_machine_says_what_to_type(running: Machine) -> None:
    running.pause()
    with pytest.raises(StateError, match="is paused") as said:
        running.adjust(memory="192M")
    assert "cerne resume web" in said.value.hint


@pytest.mark.parametrize(
    ("step", "expected"), [("promised", 64), ("resizing", 64), ("resized", 192)]
)
def test_a_command_that_is_killed_leaves_what_the_guest_has(
    manager: Manager, running: Machine, step: str, expected: int
) -> None:
    adjust_killed_at(step, manager.home, memory="192M")
    # Any command that looks at machines puts it right.
    found = manager.get("web")
    assert found.record.memory == found.spec.memory == expected * MIB
    assert _promised(manager) == expected * MIB
    found.snapshot("now")
