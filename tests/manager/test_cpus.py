"""Machines that get more CPUs while they run, over an engine that only pretends."""

from __future__ import annotations

import pytest
from tests.manager.conftest import FakeEngine, FakeInstance

from cerne import faults
from cerne.client import Host, Machine
from cerne.errors import CapacityError, EngineError, InputError, StateError
from cerne.spec.machine import machine_spec


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerne.manager.capacity.os.sched_getaffinity", lambda _pid: set(range(8)))


@pytest.fixture
def machine(host: Host) -> Machine:
    spec = machine_spec(name="web", image="blank", memory="64M", network="none", max_cpus=4)
    made = host.create(spec)
    made.start()
    return made


def test_it_grows(machine: Machine, engine: FakeEngine) -> None:
    assert engine.plans[-1].most_cpus == 4
    machine.adjust(cpus=3)
    assert engine.asked[-1] == "add_cpus 3"
    assert (machine.spec.cpus, machine.record.cpus, machine.spec.max_cpus) == (3, 3, 4)
    # A command may have been killed after it: asked for again, it is done again.
    machine.adjust(cpus=3)
    assert engine.asked[-1] == "add_cpus 3"
    (child,) = machine.fork()
    assert (child.spec.cpus, engine.plans[-1].cpus) == (3, 3)
    machine.stop(0)
    machine.start()
    assert (engine.plans[-1].cpus, engine.plans[-1].most_cpus) == (3, 4)


def test_what_it_does_not_take_is_refused(machine: Machine, engine: FakeEngine) -> None:
    machine.adjust(cpus=2)
    asked = list(engine.asked)
    with pytest.raises(InputError, match="gives none back"):
        machine.adjust(cpus=1)
    with pytest.raises(InputError, match="room for 4 CPUs") as caught:
        machine.adjust(cpus=5)
    assert "--max-cpus 5" in caught.value.hint
    with pytest.raises(StateError, match="--max-cpus"):
        machine.adjust(max_cpus=8)
    machine.pause()
    with pytest.raises(StateError, match="is paused") as paused:
        machine.adjust(cpus=3)
    assert "resume" in paused.value.hint
    assert [each for each in engine.asked if "cpus" in each] == [
        each for each in asked if "cpus" in each
    ]
    assert machine.spec.cpus == 2


def test_a_machine_without_room_does_not_grow(host: Host) -> None:
    machine = host.create(machine_spec(name="a", image="blank", memory="64M", network="none"))
    machine.start()
    with pytest.raises(InputError, match="room for 1 CPU,"):
        machine.adjust(cpus=2)
    machine.stop(0)
    machine.adjust(cpus=2, max_cpus=3)
    assert (machine.spec.cpus, machine.spec.max_cpus) == (2, 3)
    with pytest.raises(InputError, match="max_cpus is 3"):
        machine.adjust(cpus=4)


def test_a_host_with_fewer_cpus_refuses(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cerne.manager.capacity.os.sched_getaffinity", lambda _pid: {0, 1})
    with pytest.raises(CapacityError, match="this host has 2"):
        machine.adjust(cpus=3)
    # More than its room, too: no hint says to ask for what the host lacks.
    with pytest.raises(CapacityError, match="this host has 2") as refused:
        machine.adjust(cpus=99)
    assert refused.value.hint == "ask for at most --cpus 2"
    with pytest.raises(InputError, match="cpus is 0"):
        machine.adjust(cpus=0)
    assert machine.spec.cpus == 1


def test_what_its_process_has_is_true(
    machine: Machine, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a command was killed between the process and the store, or plugged in only some."""

    def die(step: str) -> None:
        if step == "CPUs plugged in":
            raise KeyboardInterrupt

    monkeypatch.setattr(faults, "hook", die)
    monkeypatch.setattr("cerne.manager.machines.adjust.settle_cpus", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        machine.adjust(cpus=3)
    monkeypatch.undo()
    assert machine.spec.cpus == 1
    (child,) = machine.fork()
    assert (machine.spec.cpus, child.spec.cpus) == (3, 3)

    def half(instance: FakeInstance, _count: int) -> None:
        instance.engine.cpus["web"] = 4
        raise EngineError("one failed")

    monkeypatch.setattr("cerne.manager.capacity.os.sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(FakeInstance, "add_cpus", half)
    with pytest.raises(EngineError):
        machine.adjust(cpus=4)
    assert machine.spec.cpus == 4
