"""Snapshots, forks and suspension, over an engine that only pretends."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine

from cerne import faults
from cerne.client import Host
from cerne.engine.plan import LaunchPlan
from cerne.errors import (
    CapacityError,
    CerneError,
    ConflictError,
    EngineError,
    HostError,
    InputError,
    NotFoundError,
    StateError,
    StorageError,
)
from cerne.images.parts import Parts
from cerne.manager import Home, Machine, Manager, State
from cerne.spec.machine import machine_spec
from cerne.spec.ports import parse_publish
from cerne.storage.overlay import backing_of, chain


def _state(machine: Machine) -> State:
    return machine.state


def _layers_under(manager: Manager, machine: Machine) -> list[Path]:
    files = chain(manager.home.root_disk(machine.id), "qcow2")
    return [path for path, _ in files if path.parent == manager.home.layers]


def _names(manager: Manager) -> list[str]:
    return [machine.name for machine in manager.machines()]


def test_a_snapshot_of_a_running_machine(
    manager: Manager, machine: Machine, engine: FakeEngine
) -> None:
    machine.start()
    snapshot = machine.snapshot("before")
    assert _state(machine) is State.RUNNING
    assert snapshot.memory is not None
    assert (snapshot.memory / "state").read_text() == machine.id
    assert _layers_under(manager, machine) == [snapshot.layer]
    assert [found.name for found in manager.snapshots()] == ["before"]
    assert manager.snapshot(snapshot.id).name == "before"
    assert machine.snapshot().name == "web-1"
    with pytest.raises(ConflictError, match="snapshot named before"):
        machine.snapshot("before")
    with pytest.raises(InputError, match="a snapshot's name"):
        machine.snapshot("a/b")


def test_a_snapshot_of_a_stopped_machine_is_its_disk(manager: Manager, machine: Machine) -> None:
    root = manager.home.root_disk(machine.id)
    written = root.stat().st_ino
    snapshot = machine.snapshot()
    assert snapshot.memory is None
    assert snapshot.layer is not None
    assert snapshot.layer.stat().st_ino == written
    assert list(manager.home.snapshots.iterdir()) == []
    copy = snapshot.restore_as("copy")
    assert (_state(copy), _layers_under(manager, copy)) == (State.RUNNING, [snapshot.layer])
    assert _state(machine) is State.DEFINED


def test_declined_memory_is_not_kept(manager: Manager, machine: Machine) -> None:
    machine.start()
    assert machine.snapshot(memory=False).memory is None
    assert list(manager.home.snapshots.iterdir()) == []


def test_many_layers_are_merged_when_it_boots(
    manager: Manager, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.manager.disks.layers._MANY_LAYERS", 2)
    monkeypatch.setattr("cerne.manager.disks.layers._MOST_LAYERS", 3)
    snapshots = [machine.snapshot() for _ in range(3)]
    with pytest.raises(StateError) as caught:
        machine.snapshot()
    assert "start it again" in caught.value.hint
    machine.start()
    assert _layers_under(manager, machine) == []
    assert machine.snapshot().layer not in [snapshot.layer for snapshot in snapshots]
    for snapshot in manager.snapshots():
        snapshot.remove()
    assert len(list(manager.home.layers.iterdir())) == 1


def test_what_a_merge_frees_is_removed_at_once(
    manager: Manager, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.manager.disks.layers._MANY_LAYERS", 2)
    snapshots = [machine.snapshot() for _ in range(3)]
    for snapshot in snapshots[:2]:
        snapshot.remove()
    assert len(list(manager.home.layers.iterdir())) == 3
    snapshots[2].remove()
    assert len(list(manager.home.layers.iterdir())) == 3
    machine.start()
    assert list(manager.home.layers.iterdir()) == []


def test_going_back(manager: Manager, machine: Machine, engine: FakeEngine) -> None:
    machine.start()
    snapshot = machine.snapshot()
    later = machine.snapshot()
    before = machine.record.process
    assert snapshot.restore().id == machine.id
    assert before is not None
    assert not before.alive()
    assert _state(machine) is State.RUNNING
    assert engine.plans[-1].saved == snapshot.memory
    assert _layers_under(manager, machine) == [snapshot.layer]
    later.remove()
    assert list(manager.home.layers.iterdir()) == [snapshot.layer]


def test_another_machine_of_a_snapshot(
    manager: Manager, machine: Machine, engine: FakeEngine
) -> None:
    machine.start()
    snapshot = machine.snapshot()
    machine.remove(force=True)
    with pytest.raises(NotFoundError) as caught:
        snapshot.restore()
    assert "--as NAME" in caught.value.hint
    copy = snapshot.restore_as("copy", [parse_publish("18080:80")])
    assert (copy.record.parent, copy.spec.name) == (machine.id, "copy")
    assert engine.plans[-1].nics[0].mac != engine.plans[0].nics[0].mac
    with pytest.raises(ConflictError):
        snapshot.restore_as("copy")
    assert _names(manager) == ["copy"]
    copy.remove(force=True)
    snapshot.remove()
    assert [list(place.iterdir()) for place in (manager.home.layers, manager.home.locks)] == [
        [],
        [manager.home.layers_lock],
    ]


def test_a_snapshot_that_cannot_be_restored_ends_nothing(
    manager: Manager, machine: Machine, engine: FakeEngine
) -> None:
    machine.start()
    snapshot = machine.snapshot()
    process, disk = machine.record.process, _layers_under(manager, machine)
    engine.refusal = HostError("another processor")
    with pytest.raises(HostError):
        snapshot.restore()
    with pytest.raises(HostError):
        snapshot.restore_as("copy")
    assert (machine.record.process, _names(manager)) == (process, ["web"])
    engine.refusal, engine.failure = None, EngineError("it broke")
    with pytest.raises(EngineError):
        snapshot.restore()
    assert _state(machine) is State.FAILED
    assert _layers_under(manager, machine) == disk
    with pytest.raises(EngineError):
        snapshot.restore_as("copy")
    assert _names(manager) == ["web"]
    assert engine.running() == 0


@pytest.mark.parametrize("failure", [EngineError("it broke"), KeyboardInterrupt()])
def test_a_snapshot_that_fails_leaves_the_machine(
    manager: Manager,
    machine: Machine,
    engine: FakeEngine,
    asked: list[str],
    failure: BaseException,
) -> None:
    machine.start()
    engine.failure = failure
    with pytest.raises(type(failure)):
        machine.snapshot()
    assert (_state(machine), asked) == (State.RUNNING, ["break_off_saving", "resume"])
    machine.pause()
    with pytest.raises(type(failure)):
        machine.snapshot()
    assert (_state(machine), asked[2:]) == (State.PAUSED, ["pause", "break_off_saving"])
    assert manager.snapshots() == []
    assert list(manager.home.snapshots.iterdir()) == []


def test_a_machine_without_a_disk_that_does_not_run_has_nothing_to_keep(
    manager: Manager, tmp_path: Path
) -> None:
    kernel = manager.home.images / "kernel"
    kernel.write_bytes(b"kernel")
    manager.images.add("bare", Parts(kernel=kernel), source="a test")
    machine = manager.create(machine_spec(name="web", image="bare", memory="64M"))
    with pytest.raises(InputError, match="would be empty"):
        machine.snapshot()
    machine.start()
    snapshot = machine.snapshot()
    assert snapshot.layer is None
    assert _state(snapshot.restore_as("copy")) is State.RUNNING
    assert [_state(child) for child in machine.fork(2)] == [State.RUNNING] * 2


def test_suspending_and_waking(machine: Machine, engine: FakeEngine) -> None:
    machine.start()
    machine.suspend()
    assert _state(machine) is State.SUSPENDED
    assert engine.running() == 0
    with pytest.raises(StateError, match="lose its memory"):
        machine.stop()
    with pytest.raises(StateError) as caught:
        machine.pause()
    assert "cerne wake web" in caught.value.hint
    machine.wake()
    assert _state(machine) is State.RUNNING
    assert engine.plans[-1].saved == machine._context.saved
    assert not machine._context.saved.exists()
    with pytest.raises(StateError, match="web is running") as caught:
        machine.wake()
    assert "cerne shell web" in caught.value.hint
    machine.suspend()
    machine.start()
    assert engine.plans[-1].saved is not None
    machine.suspend()
    machine.kill()
    assert _state(machine) is State.STOPPED
    assert not machine._context.saved.exists()


def test_a_machine_that_cannot_be_woken_stays_suspended(
    machine: Machine, engine: FakeEngine
) -> None:
    machine.start()
    machine.suspend()
    engine.failure = EngineError("it broke")
    with pytest.raises(EngineError):
        machine.wake()
    assert (_state(machine), machine.record.reason) == (State.SUSPENDED, "it broke")
    engine.failure = None
    machine.wake()
    assert _state(machine) is State.RUNNING


def test_a_suspended_machine_is_removed_with_its_memory(manager: Manager, machine: Machine) -> None:
    machine.start()
    machine.suspend()
    machine.remove()
    assert list(manager.home.machines.iterdir()) == []


def _identity(plan: LaunchPlan) -> tuple[str, str, Path, Path, str]:
    return plan.machine_id, plan.name, plan.runtime, plan.disks[0].path, plan.nics[0].mac


@pytest.mark.parametrize("forks", [True, False])
def test_forking(manager: Manager, machine: Machine, engine: FakeEngine, forks: bool) -> None:
    engine.forks = forks
    machine.start()
    children = machine.fork(3, names=["left"])
    assert [child.name for child in children] == ["left", "web-1", "web-2"]
    assert [_state(child) for child in children] == [State.RUNNING] * 3
    assert _state(machine) is State.RUNNING
    assert all((plan.saved is None) is forks for plan in engine.plans[1:])
    # Nothing by which a machine is known is another's.
    for parts in zip(*map(_identity, engine.plans), strict=True):
        assert len(set(parts)) == 4
    roots = [manager.home.root_disk(found.id) for found in (machine, *children)]
    assert len({backing_of(root) for root in roots}) == 1
    assert list(manager.home.snapshots.iterdir()) == []
    (grandchild,) = children[0].fork()
    machine.remove(force=True)
    assert _state(grandchild) is State.RUNNING
    assert len(_layers_under(manager, grandchild)) == 2


def test_a_machine_with_strict_isolation_shares_no_memory(host: Host, engine: FakeEngine) -> None:
    machine = host.create(
        machine_spec(name="s", image="blank", memory="64M", network="none", isolation="strict")
    )
    machine.start()
    assert engine.plans[-1].strict
    with pytest.raises(InputError, match="a fork shares memory with its parent"):
        machine.fork()
    kept = machine.snapshot("kept")
    with pytest.raises(InputError, match="would be shared") as caught:
        kept.restore_as("other")
    assert "--no-memory" in caught.value.hint
    kept.restore()
    other = machine.snapshot("disk", memory=False).restore_as("other")
    assert other.spec.strict
    machine.suspend()
    machine.start()
    assert machine.state is State.RUNNING


def test_strict_isolation_is_refused_where_cores_are_shared(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise HostError("this host does not have strict isolation")

    monkeypatch.setattr("cerne.manager.capacity.require_own_cores", refuse)
    with pytest.raises(HostError, match="does not have strict isolation"):
        host.create(machine_spec(name="s", image="blank", memory="64M", isolation="strict"))
    assert host.machines() == []
    host.create(machine_spec(name="s", image="blank", memory="64M"))


def test_children_do_not_have_their_parents_ports(machine: Machine, engine: FakeEngine) -> None:
    machine.start()
    with pytest.raises(InputError, match="share the published ports"):
        machine.fork(2, ports=[parse_publish("18081:80")])
    machine.fork(ports=[parse_publish("18081:80")])
    assert engine.plans[-1].forwards[0].host_port == 18081


@pytest.mark.parametrize("forks", [True, False])
def test_ports_of_a_child_are_checked_and_kept_as_ports(
    machine: Machine, engine: FakeEngine, forks: bool, recwarn: pytest.WarningsRecorder
) -> None:
    engine.forks = forks
    machine.start()
    (child,) = machine.fork(ports=["18081:80", "0:81"])
    assert child.spec.ports[0] == parse_publish("18081:80")
    assert child.ports[1].host_port != 0
    assert engine.plans[-1].forwards == child.ports
    assert not recwarn.list
    with pytest.raises(InputError, match="does not name a port"):
        machine.fork(ports=[8080])  # type: ignore[list-item]
    with pytest.raises(InputError, match="is not an address"):
        machine.fork(ports=["[::1::]:8080:80"])


def test_a_child_has_another_tap_or_the_same_user_network(host: Host, engine: FakeEngine) -> None:
    spec = machine_spec(name="t", image="blank", memory="64M", network="tap:tap0")
    machine = host.create(spec)
    machine.start()
    assert engine.plans[-1].taps[0].interface == "tap0"
    with pytest.raises(InputError, match="share the published ports or the tap"):
        machine.fork(2, network="tap:tap1")
    for network in ("user", "none"):
        with pytest.raises(InputError, match="a copy of a machine with the network"):
            machine.fork(network=network)
    (child,) = machine.fork(network="tap:tap1")
    assert engine.plans[-1].taps[0].interface == "tap1"
    assert child.spec.network == "tap:tap1"
    kept = machine.snapshot("kept")
    assert kept.restore_as("other", network="tap:tap2").spec.network == "tap:tap2"
    kept.restore()
    assert engine.plans[-1].taps[0].interface == "tap0"


@pytest.mark.parametrize(
    ("count", "names", "error"),
    [
        (0, (), InputError),
        (257, (), InputError),
        (1, ("a", "b"), InputError),
        (None, ("a", "a"), ConflictError),
        (None, ("web",), ConflictError),
        (None, ("a/b",), InputError),
    ],
)
def test_forks_that_cannot_be(
    manager: Manager,
    machine: Machine,
    count: int | None,
    names: tuple[str, ...],
    error: type[CerneError],
) -> None:
    machine.start()
    with pytest.raises(error):
        machine.fork(count, names=names)
    assert _names(manager) == ["web"]
    assert list(manager.home.layers.iterdir()) == []


def test_memory_is_guaranteed_to_all_children_or_none(
    manager: Manager, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start()
    monkeypatch.setattr("cerne.manager.capacity.supplied_memory", lambda: 456 << 20)
    with pytest.raises(CapacityError):
        machine.fork(3)
    assert _names(manager) == ["web"]
    assert len(machine.fork(2)) == 2


@pytest.mark.parametrize("failure", [EngineError("it broke"), KeyboardInterrupt()])
def test_a_fork_that_fails_leaves_the_parent_alone(
    manager: Manager,
    machine: Machine,
    engine: FakeEngine,
    asked: list[str],
    failure: BaseException,
) -> None:
    machine.start()
    engine.failure = failure
    with pytest.raises(type(failure)):
        machine.fork(2)
    assert (_names(manager), _state(machine)) == (["web"], State.RUNNING)
    assert engine.running() == 1
    assert len(list(manager.home.machines.iterdir())) == 1
    assert len(list(manager.home.machines_runtime.iterdir())) == 1


def test_a_child_is_no_machine_before_it_was_told_who_it_is(
    manager: Manager, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(faults, "hook", lambda _step: seen.append(_names(manager)))
    machine.start()
    machine.fork(2)
    assert all(names == ["web"] for names in seen)
    assert _names(manager) == ["web", "web-1", "web-2"]


def test_only_what_runs_is_forked_or_suspended(machine: Machine) -> None:
    for operation in (machine.fork, machine.suspend):
        with pytest.raises(StateError, match="web is defined"):
            operation()


def test_a_full_disk_is_told_in_words_and_changes_nothing(
    small_home: Home, engine: FakeEngine, asked: list[str], tmp_path: Path
) -> None:
    manager = Manager(small_home, lambda _requested: engine)
    raw = tmp_path / "blank.raw"
    raw.write_bytes(bytes(1 << 20))
    manager.images.import_(str(raw), "blank")
    machine = manager.create(machine_spec(name="web", image="blank", memory="64M"))
    machine.start()
    process = machine.record.process
    engine.saved_size, engine.forks = 64 << 20, False
    for operation in (machine.snapshot, machine.suspend, machine.fork):
        with pytest.raises(StorageError, match="the disk is full"):
            operation()
        assert machine.record.process == process
        assert _state(machine) is State.RUNNING
    assert _names(manager) == ["web"]
    assert manager.snapshots() == []
    assert list(small_home.snapshots.iterdir()) == []
    engine.saved_size = 4096
    machine.snapshot()
