"""Changing machines that run and that do not, over an engine that only pretends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cells import skip_without_limits
from tests.manager.conftest import FakeEngine, FakeInstance

from cerne import faults
from cerne.client import Host
from cerne.errors import EngineError, HostError, InputError
from cerne.manager import Home, Machine, Manager, State
from cerne.spec.asked import Adjustment
from cerne.spec.machine import MachineSpec, machine_spec
from cerne.spec.resources import Resources
from cerne.units import MIB


@pytest.fixture
def weights() -> None:
    """Skips where this host does not let us weigh machines by its own files."""
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd has the control groups here")
    skip_without_limits()


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which no process can be weighed."""

    def refuse(resources: Resources) -> None:
        if not resources.is_empty:
            raise HostError("this host does not limit machines", hint="be root")

    monkeypatch.setattr("cerne.manager.capacity.require_limits", refuse)


def _spec(**fields: object) -> MachineSpec:
    return machine_spec(**{"name": "web", "image": "blank", "memory": "64M", **fields})


def _group(machine: Machine) -> str:
    process = machine.record.process
    assert process is not None
    lines = Path(f"/proc/{process.pid}/cgroup").read_text().splitlines()
    return next((line for line in lines if f"cerne-{machine.id}" in line), "")


def _groups() -> set[Path]:
    """The groups that machines have on this host, wherever they are nested."""
    # Others may end meanwhile.
    return {
        Path(place, name)
        for place, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith("cerne-")
    }


@pytest.fixture
def none_left(engine: FakeEngine) -> Iterator[None]:
    yield
    machines = {plan.machine_id for plan in engine.plans}
    left = [path for path in _groups() if any(id_ in path.name for id_ in machines)]
    assert left == []


def test_a_machine_that_does_not_run_has_it_at_its_next_start(
    machine: Machine, engine: FakeEngine, asked: list[str]
) -> None:
    machine.adjust(balloon=48 * MIB)
    assert machine.spec.balloon == 48 * MIB
    machine.start()
    assert engine.plans[-1].balloon == 48 * MIB
    assert asked == []
    assert [event.kind for event in machine.events()].count("changed") == 1


def test_a_limit_that_the_engine_lacks_is_refused_before_the_next_start(machine: Machine) -> None:
    before = machine.spec
    with pytest.raises(InputError, match="limits no network card") as said:
        machine.adjust(network_rate="1M")
    assert "--network-rate none" in said.value.hint
    assert machine.spec == before


def test_a_machine_that_runs_or_is_paused_has_it_at_once(
    machine: Machine, asked: list[str]
) -> None:
    machine.start()
    machine.adjust(balloon=48 * MIB)
    machine.pause()
    machine.adjust(balloon=64 * MIB)
    assert asked == [f"set_memory {48 * MIB}", "pause", f"set_memory {64 * MIB}"]
    assert machine.spec.balloon == 64 * MIB
    assert machine.state is State.PAUSED


@pytest.mark.parametrize(
    "changes",
    [{}, {"balloon": 65 * MIB}, {"balloon": 1}, {"cpu_weight": 0}, {"cpu_weight": 10_001}],
)
def test_what_cannot_be_changes_nothing(
    machine: Machine, asked: list[str], changes: Adjustment
) -> None:
    machine.start()
    before = machine.spec
    with pytest.raises(InputError):
        machine.adjust(**changes)
    assert machine.spec == before
    assert asked == []


def test_a_process_that_does_not_answer_keeps_what_it_has(
    machine: Machine, engine: FakeEngine
) -> None:
    machine.start()
    engine.silent = True
    with pytest.raises(EngineError):
        machine.adjust(balloon=48 * MIB)
    assert machine.spec.balloon is None


def test_a_weight_that_cannot_be_given_is_refused_before_anything(
    host: Host, machine: Machine, asked: list[str], refused: None
) -> None:
    machine.start()
    with pytest.raises(HostError, match="does not limit"):
        machine.adjust(balloon=48 * MIB, cpu_weight=300)
    assert asked == []
    assert machine.spec.resources.cpu.weight is None
    with pytest.raises(HostError, match="does not limit"):
        host.create(_spec(name="other", cpu_weight=300))
    assert [each.name for each in host.machines()] == ["web"]


def test_what_fails_midway_is_put_back(
    machine: Machine, asked: list[str], weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []

    def refuse(_: FakeInstance, resources: Resources) -> None:
        given.append(resources.cpu.weight)
        if given == [300]:
            raise HostError("no")

    machine.start()
    monkeypatch.setattr(FakeInstance, "set_resources", refuse)
    with pytest.raises(HostError):
        machine.adjust(balloon=48 * MIB, cpu_weight=300)
    assert given == [300, None]
    assert asked == [f"set_memory {48 * MIB}", f"set_memory {64 * MIB}"]
    assert machine.spec.balloon is None


def test_a_machine_is_weighed_from_its_start_to_its_end(
    manager: Manager, weights: None, none_left: None
) -> None:
    machine = manager.create(_spec(cpu_weight=300))
    machine.start()
    assert _group(machine)
    machine.adjust(cpu_weight=50)
    assert machine.spec.resources.cpu.weight == 50
    (child,) = machine.fork()
    assert _group(child)
    assert child.spec.resources.cpu.weight == 50
    machine.kill()
    machine.start()
    assert _group(machine)
    child.remove(force=True)
    machine.remove(force=True)


def test_a_machine_that_asks_for_nothing_has_a_group_too(
    machine: Machine, weights: None, none_left: None
) -> None:
    machine.start()
    assert _group(machine)
    machine.adjust(cpu_weight=300)
    assert _group(machine)
    machine.kill()


def test_a_weight_that_fails_at_a_start_leaves_no_process(
    host: Host, engine: FakeEngine, weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise HostError("no")

    machine = host.create(_spec(cpu_weight=300))
    monkeypatch.setattr("cerne.host.cgroup.apply", refuse)
    with pytest.raises(HostError):
        machine.start()
    assert machine.state is State.FAILED
    assert engine.running() == 0


@pytest.mark.parametrize("step", range(7))
def test_a_start_that_is_killed_leaves_no_group(
    manager: Manager, weights: None, none_left: None, step: int
) -> None:
    machine = manager.create(_spec(cpu_weight=300))
    pid = os.fork()
    if pid == 0:
        _start_and_die(manager.home, step)
    os.waitpid(pid, 0)
    machine.remove(force=True)
    assert not manager.home.machine_runtime(machine.id).exists()


def _start_and_die(home: Home, step: int) -> None:
    left = step

    def die(_name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(99)

    try:
        faults.hook = die
        engine = FakeEngine()
        Manager(home, lambda _requested: engine).get("web").start()
    finally:
        os._exit(0)
