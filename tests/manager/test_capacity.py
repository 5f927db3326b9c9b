"""The ledger: what is promised is had by nobody else, and is free once its machine has ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine, FakeInstance

from cerne import faults
from cerne.errors import CapacityError, CerneError, EngineError, InputError
from cerne.host.ledger import Published
from cerne.manager import Home, Machine, Manager, State
from cerne.manager.store.promises import Resource, promised_elsewhere
from cerne.spec.machine import MachineSpec, machine_spec
from cerne.spec.resources import Resources
from cerne.units import GIB, MIB


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with room for three machines of 64 MiB."""
    monkeypatch.setattr("cerne.manager.capacity.supplied_memory", lambda: (256 + 200) * MIB)
    monkeypatch.setattr(FakeInstance, "set_resources", lambda *_: None)


def _spec(name: str, **fields: object) -> MachineSpec:
    return machine_spec(**{"name": name, "image": "blank", "memory": "64M", **fields})


def _started(manager: Manager, *names: str) -> list[Machine]:
    machines = [manager.create(_spec(name)) for name in names]
    for machine in machines:
        machine.start()
    return machines


def _promised(manager: Manager, resource: Resource = Resource.MEMORY) -> dict[str, int]:
    promises = manager.capacity().promises
    return {each.machine: each.amount for each in promises if each.resource is resource}


def _killed(machine: Machine) -> None:
    process = machine.record.process
    assert process is not None
    process.send(signal.SIGKILL)
    process.wait(20)


def test_a_machine_that_does_not_fit_is_refused_with_what_is_short(manager: Manager) -> None:
    _started(manager, "a", "b", "c")
    late = manager.create(_spec("d"))
    with pytest.raises(CapacityError) as refused:
        late.start()
    assert refused.value.message == (
        "d needs 64M of memory, which is 56M more than is free: 8M of 200M;"
        " promised to a 64M, b 64M, c 64M"
    )
    assert "cerne stop a" in refused.value.hint
    assert "--memory" in refused.value.hint
    assert late.state is State.DEFINED
    manager.get("b").stop(timeout=0.0)
    late.start()
    assert _promised(manager) == {"a": 64 * MIB, "c": 64 * MIB, "d": 64 * MIB}


def test_the_hint_makes_room(manager: Manager) -> None:
    _started(manager, "a", "b", "c")
    late = manager.create(_spec("d"))
    with pytest.raises(CapacityError) as refused:
        late.start()
    ratio = refused.value.hint.rpartition("memory=")[2]
    manager.set_overcommit({"memory": float(ratio)})
    late.start()


def test_a_row_of_an_unknown_resource_is_left_alone(manager: Manager) -> None:
    _started(manager, "a")
    with manager._context.store._database.transaction() as connection:
        connection.execute("INSERT INTO promises SELECT id, 'gpu', 5 FROM machines")
        connection.execute("INSERT INTO overcommit (resource, ratio) VALUES ('gpu', 2)")
    assert _promised(manager) == {"a": 64 * MIB}
    assert "gpu" not in [account.resource for account in manager.capacity().accounts]


def test_a_machine_whose_process_has_ended_holds_nothing(manager: Manager) -> None:
    machines = _started(manager, "a", "b", "c")
    _killed(machines[1])
    late = manager.create(_spec("d"))
    late.start()
    assert _promised(manager) == {"a": 64 * MIB, "c": 64 * MIB, "d": 64 * MIB}


def test_what_its_processes_need_is_counted(manager: Manager, engine: FakeEngine) -> None:
    engine.needs_beside = 40 * MIB
    manager.create(_spec("a")).start()
    assert _promised(manager) == {"a": 104 * MIB}
    with pytest.raises(CapacityError, match="needs 104M of memory, which is 8M more"):
        manager.create(_spec("b")).start()


def test_memory_is_promised_as_far_as_it_is_guaranteed(manager: Manager) -> None:
    machine = manager.create(_spec("a", memory="180M", memory_guarantee="100M"))
    machine.start()
    manager.create(_spec("b", memory="100M")).start()
    assert _promised(manager) == {"a": 100 * MIB, "b": 100 * MIB}


def test_cpu_time_is_promised_as_far_as_it_is_guaranteed(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.manager.capacity.supplied_cpus", lambda: 2)
    for name, cpus in (("a", "1"), ("b", "0.75"), ("c", None)):
        manager.create(_spec(name, cpu_guarantee=cpus)).start()
    assert _promised(manager, Resource.CPU) == {"a": 1000, "b": 750}
    manager.get("c").stop(timeout=0.0)
    late = manager.create(_spec("d", cpu_guarantee="50%"))
    with pytest.raises(CapacityError) as refused:
        late.start()
    assert refused.value.message == (
        "d needs 0.5 of CPU time, which is 0.25 more than is free: 0.25 of 2;"
        " promised to a 1, b 0.75"
    )
    assert "cerne capacity --overcommit cpu=1.13" in refused.value.hint


def test_two_starts_at_once_never_promise_the_same(manager: Manager) -> None:
    machines = [manager.create(_spec(f"m{number}")) for number in range(8)]
    refused: list[str] = []

    def start(machine: Machine) -> None:
        try:
            machine.start()
        except CapacityError:
            refused.append(machine.name)

    threads = [threading.Thread(target=start, args=(machine,)) for machine in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert len(_promised(manager)) == 3


def test_suspending_frees_and_waking_claims_again(manager: Manager) -> None:
    (machine, *_) = _started(manager, "a", "b", "c")
    machine.suspend()
    (late,) = _started(manager, "d")
    with pytest.raises(CapacityError):
        machine.wake()
    assert machine.state is State.SUSPENDED
    late.stop(timeout=0.0)
    machine.wake()
    assert set(_promised(manager)) == {"a", "b", "c"}


def test_forks_and_restored_machines_claim(manager: Manager) -> None:
    (machine,) = _started(manager, "a")
    snapshot = machine.snapshot("kept")
    with pytest.raises(CapacityError, match="a-3 needs"):
        machine.fork(3)
    machine.fork(2)
    with pytest.raises(CapacityError):
        snapshot.restore_as("other")
    assert [each.name for each in manager.machines()] == ["a", "a-1", "a-2"]
    manager.get("a-1").kill()
    snapshot.restore_as("other")
    # What is taken back to its own snapshot needs no more than it has.
    snapshot.restore()
    assert set(_promised(manager)) == {"a", "a-2", "other"}


def test_a_pool_that_does_not_fit_is_refused(manager: Manager) -> None:
    _started(manager, "a")
    with pytest.raises(CapacityError, match="pool needs 192M of memory, which is 56M more"):
        manager.create_pool("pool", _spec("pool"), 3)
    assert manager.pools() == []


def test_a_change_claims_more_or_less(manager: Manager) -> None:
    (machine,) = _started(manager, "a")
    machine.adjust(memory_guarantee="32M")
    assert _promised(manager) == {"a": 32 * MIB}
    _started(manager, "b", "c")
    manager.create(_spec("d", memory="40M")).start()
    with pytest.raises(CapacityError):
        machine.adjust(memory_guarantee="none")
    assert machine.spec.resources.memory.guarantee == 32 * MIB
    manager.get("d").stop(timeout=0.0)
    machine.adjust(memory_guarantee="none")
    assert _promised(manager)["a"] == 64 * MIB


def test_a_change_that_fails_claims_what_was_claimed(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine,) = _started(manager, "a")

    def refuse(*_: object) -> None:
        raise EngineError("no")

    monkeypatch.setattr(FakeInstance, "set_resources", refuse)
    with pytest.raises(EngineError):
        machine.adjust(memory_guarantee="32M")
    assert _promised(manager) == {"a": 64 * MIB}
    assert machine.spec.resources == Resources()


def test_a_change_that_is_killed_leaves_no_promise(manager: Manager) -> None:
    machine = manager.create(_spec("a", memory="128M", memory_guarantee="32M"))
    machine.start()
    pid = os.fork()
    if pid == 0:
        _adjust_and_die(manager.home)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 99
    with manager._store._database.transaction():
        pass
    assert manager._store.promised_to(machine.record)[Resource.MEMORY] == 128 * MIB
    # What is promised too much is free as soon as it is needed.
    _started(manager, "b", "c")
    assert _promised(manager)["a"] == 32 * MIB


def _adjust_and_die(home: Home) -> None:
    def die(name: str) -> None:
        if name == "promised":
            os._exit(99)

    try:
        faults.hook = die
        engine = FakeEngine()
        Manager(home, lambda _requested: engine).get("a").adjust(memory_guarantee="none")
    finally:
        os._exit(0)


def test_the_room_for_disks_is_promised_as_long_as_a_machine_exists(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = manager.create(_spec("a", disk="1G", data_disks=["2G"]))
    assert _promised(manager, Resource.DISK) == {"a": 3 * GIB}
    machine.attach_disk("1G")
    machine.start()
    machine.stop(timeout=0.0)
    assert _promised(manager, Resource.DISK) == {"a": 4 * GIB}
    machine.detach_disk("data1")
    assert _promised(manager, Resource.DISK) == {"a": 2 * GIB}
    with pytest.raises(CapacityError) as refused:
        manager.create(_spec("b", data_disks=["60T"]))
    assert "cerne rm a" in refused.value.hint
    with pytest.raises(CapacityError):
        machine.attach_disk("60T")
    assert [disk.serial for disk in machine.spec.data_disks] == ["data2"]
    assert sorted(path.name for path in manager.home.machine_directory(machine.id).iterdir()) == [
        "data-data2.qcow2",
        "root.qcow2",
    ]
    machine.remove()
    assert _promised(manager, Resource.DISK) == {}


def test_the_disks_of_all_machines_are_looked_at_only_where_free_space_is_short(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Home] = []

    def taken(home: Home) -> list[int]:
        looks.append(home)
        return [8 * GIB]

    free = os.statvfs_result((4096, 4096, 0, 0, GIB // 4096, 0, 0, 0, 0, 255))
    monkeypatch.setattr("cerne.manager.capacity._taken", taken)
    monkeypatch.setattr("cerne.manager.capacity.os.statvfs", lambda _: free)
    manager.set_overcommit({"disk": 1})
    manager.create(_spec("a", data_disks=["500M"]))
    assert looks == []
    manager.create(_spec("b", data_disks=["6G"]))
    assert looks == [manager.home]
    with pytest.raises(CapacityError, match=r"2\.1G of 8\.6G"):
        manager.create(_spec("c", data_disks=["6G"]))


def test_a_machine_larger_than_the_host_needs_an_overcommit(manager: Manager) -> None:
    with pytest.raises(CapacityError, match="this host can give 200M"):
        manager.create(_spec("a", memory="300M"))
    manager.set_overcommit({"memory": 1.5})
    manager.create(_spec("a", memory="300M")).start()
    (memory,) = (each for each in manager.capacity().accounts if each.resource is Resource.MEMORY)
    assert (memory.has, memory.reserve, memory.promised) == (456 * MIB, 256 * MIB, 300 * MIB)
    assert (memory.ratio, memory.free) == (1.5, 0)


@pytest.mark.parametrize(
    "ratios", [{"memory": 0}, {"memory": -1}, {"disk": float("nan")}, {"cpu": 2000}, {"speed": 1}]
)
def test_ratios_that_are_not_valid_are_refused(manager: Manager, ratios: dict[str, float]) -> None:
    with pytest.raises(InputError):
        manager.set_overcommit(ratios)
    assert [each.ratio for each in manager.capacity().accounts] == [1, 1, 20]


def test_a_start_that_fails_promises_nothing(manager: Manager, engine: FakeEngine) -> None:
    machine = manager.create(_spec("a"))
    engine.failure = EngineError("it broke")
    with pytest.raises(CerneError):
        machine.start()
    assert _promised(manager) == {}


@pytest.fixture
def other(
    manager: Manager, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    """Another home of this host."""
    directory = manager.home.data / "other"
    monkeypatch.setenv("CERNE_HOME", str(directory))
    with Manager(Home.of_this_user(), lambda _: engine) as made:
        made.images.import_(str(tmp_path / "blank.raw"), "blank")
        yield made
        for machine in made.machines():
            machine.remove(force=True)


@pytest.mark.usefixtures("root")
def test_what_other_homes_have_promised_is_not_promised_again(
    manager: Manager, other: Manager
) -> None:
    _started(manager, "a", "b")
    (theirs,) = _started(other, "c")
    account = {each.resource: each for each in other.capacity().accounts}[Resource.MEMORY]
    assert (account.promised, account.elsewhere, account.free) == (64 * MIB, 128 * MIB, 8 * MIB)
    late = manager.create(_spec("d"))
    with pytest.raises(CapacityError) as refused:
        late.start()
    assert refused.value.message == (
        "d needs 64M of memory, which is 56M more than is free: 8M of 200M;"
        f" promised to a 64M, b 64M, c in {other.home.data} 64M"
    )
    # No command of the other home notices that its machine has ended.
    _killed(theirs)
    late.start()
    assert other.capacity().accounts[1].elsewhere == 3 * 64 * MIB


@pytest.mark.usefixtures("root")
def test_a_start_that_is_refused_leaves_no_promise_in_the_ledger_of_the_host(
    manager: Manager, other: Manager
) -> None:
    (a, *_) = _started(manager, "a", "b", "c")
    with pytest.raises(CapacityError):
        _started(other, "d")
    assert manager.capacity().elsewhere == ()
    a.adjust(memory_guarantee="32M")
    (seen, *_) = sorted(other.capacity().elsewhere, key=lambda each: each.memory)
    assert (seen.name, seen.memory) == ("a", 32 * MIB)


@pytest.mark.usefixtures("root")
def test_two_homes_at_once_do_not_promise_the_same_memory(manager: Manager, other: Manager) -> None:
    machines = [each.create(_spec("a", memory="128M")) for each in (manager, other)]
    for _ in range(5):
        begin = threading.Barrier(2)
        refused: list[Machine] = []

        def start(
            machine: Machine, begin: threading.Barrier = begin, refused: list[Machine] = refused
        ) -> None:
            begin.wait()
            try:
                machine.start()
            except CapacityError:
                refused.append(machine)

        threads = [threading.Thread(target=start, args=(each,)) for each in machines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 1
        (had,) = [each for each in machines if each not in refused]
        had.kill()


@pytest.mark.usefixtures("root")
def test_other_users_together_have_half_at_most(manager: Manager) -> None:
    """A user may publish any number, and must not keep root from starting machines."""
    theirs = Published("x", 0, 1 << 50, None, "/h", 54321)
    assert promised_elsewhere(Resource.MEMORY, [theirs, theirs], 200 * MIB) == 50 * MIB
    honest = replace(theirs, user=54322, memory=30 * MIB)
    assert promised_elsewhere(Resource.MEMORY, [theirs, honest], 200 * MIB) == 80 * MIB
    many = [replace(theirs, user=54321 + number) for number in range(5)]
    assert promised_elsewhere(Resource.MEMORY, many, 200 * MIB) == 100 * MIB
    ours = replace(theirs, user=0, memory=150 * MIB)
    assert promised_elsewhere(Resource.MEMORY, [*many, ours], 200 * MIB) == 250 * MIB
