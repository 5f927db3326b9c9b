"""What guests are asked for if the host is short of memory, and what they get back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.manager.conftest import FakeEngine

from cerne.engine.base import GuestMemoryUse
from cerne.manager import Machine, Manager
from cerne.manager.lock import held
from cerne.manager.machines import balance as module
from cerne.manager.machines.balance import Change, Guest, decide
from cerne.spec.machine import machine_spec
from cerne.units import GIB, MIB


def _guest(name: str, given: int, used: int, least: int = 64, most: int = 1024) -> Guest:
    return Guest(name, given * MIB, used * MIB, least * MIB, most * MIB)


def test_each_gives_the_same_part_of_what_it_does_not_use() -> None:
    guests = [_guest("a", 1024, 100), _guest("b", 1024, 600), _guest("c", 1024, 1000)]
    # They can spare 796, 296 and none.
    changes = decide(guests, -546 * MIB)
    assert [(each.machine, each.after // MIB) for each in changes] == [("a", 626), ("b", 876)]


def test_what_is_over_goes_to_those_with_the_least_to_spare() -> None:
    guests = [_guest("a", 512, 100), _guest("b", 512, 380)]
    assert decide(guests, 600 * MIB) == [
        Change("a", 512 * MIB, 600 * MIB),
        Change("b", 512 * MIB, 1024 * MIB),
    ]


def test_a_guest_that_needs_memory_gets_it_from_others_also_if_the_host_is_short() -> None:
    guests = [_guest("a", 512, 500), _guest("b", 1024, 100)]
    changes = {each.machine: each.after // MIB for each in decide(guests, 0)}
    assert changes == {"a": 628, "b": 1024 - 116}


_SIZES = st.integers(32, 4096)


@given(
    guests=st.lists(st.tuples(_SIZES, _SIZES, _SIZES, _SIZES), max_size=6),
    spare=st.integers(-8192, 8192),
)
def test_no_guest_is_asked_below_its_promise_or_what_it_uses(
    guests: list[tuple[int, int, int, int]], spare: int
) -> None:
    made = []
    for number, (given_, used, least, most) in enumerate(guests):
        most = max(least, most)
        made.append(_guest(str(number), min(given_, most), min(used, most), least, most))
    changes = {each.machine: each for each in decide(made, spare * MIB)}
    for guest in made:
        change = changes.get(guest.machine)
        if change is not None:
            assert change.after <= guest.most
            assert change.after >= min(guest.given, guest.comfortable)
    taken = sum(max(0, each.before - each.after) for each in changes.values())
    got = sum(max(0, each.after - each.before) for each in changes.values())
    assert taken <= max(0, -spare * MIB) + got
    if not taken:
        assert (
            got
            <= max(0, spare * MIB)
            + sum(max(0, each.comfortable - each.given) for each in made)
            + len(made) * MIB
        )


@pytest.fixture
def running(manager: Manager, engine: FakeEngine) -> Machine:
    """A machine of 1 GiB, of which 128 MiB are promised; its guest uses 200 MiB."""
    spec = machine_spec(name="web", image="blank", memory="1G", memory_guarantee="128M")
    machine = manager.create(spec)
    machine.start()
    engine.uses["web"] = GuestMemoryUse(GIB, 200 * MIB)
    return machine


def _available(monkeypatch: pytest.MonkeyPatch, size: int, pressure: float = 0.0) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: size)
    monkeypatch.setattr(module, "memory_reserve", lambda: GIB)
    monkeypatch.setattr(module, "memory_pressure", lambda: pressure)
    monkeypatch.setattr(module, "_PATIENCE", 0.0)


def test_a_host_that_is_short_asks(
    manager: Manager, running: Machine, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _available(monkeypatch, GIB // 2)
    found = manager.balance()
    assert found.changes == (Change("web", GIB, 328 * MIB),)
    assert asked == [f"set_memory {328 * MIB}"]
    # It is not a wish of the machine's owner.
    assert running.spec.balloon is None


def test_a_host_whose_processes_wait_for_memory_is_short(
    manager: Manager, running: Machine, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _available(monkeypatch, 4 * GIB, pressure=30.0)
    assert [each.machine for each in manager.balance().changes] == ["web"]


def test_a_host_with_enough_gives_back(
    manager: Manager,
    running: Machine,
    engine: FakeEngine,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.uses["web"] = GuestMemoryUse(328 * MIB, 200 * MIB)
    _available(monkeypatch, GIB + GIB // 2)
    assert manager.balance().changes == ()
    _available(monkeypatch, 8 * GIB)
    assert manager.balance().changes == (Change("web", 328 * MIB, GIB),)
    assert asked == [f"set_memory {GIB}"]


def test_machines_without_a_guarantee_and_busy_ones_are_left(
    manager: Manager,
    running: Machine,
    engine: FakeEngine,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = manager.create(machine_spec(name="whole", image="blank", memory="1G"))
    other.start()
    engine.uses["whole"] = GuestMemoryUse(GIB, 100 * MIB)
    _available(monkeypatch, GIB // 2)
    with held(manager.home.machine_lock(running.id), "set", "web"):
        assert manager.balance().changes == ()
    engine.uses.clear()
    assert manager.balance().changes == ()
    assert asked == []


def test_a_start_for_which_there_is_too_little_asks_the_others(
    manager: Manager, running: Machine, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = manager.create(machine_spec(name="new", image="blank", memory="512M"))
    _available(monkeypatch, 4 * GIB)
    other.start()
    assert asked == []
    other.kill()
    _available(monkeypatch, GIB + 256 * MIB)
    other.start()
    # It lacks 256 MiB of 512, and what it needs itself.
    assert asked == [f"set_memory {GIB - 256 * MIB}"]
