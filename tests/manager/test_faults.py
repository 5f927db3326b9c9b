"""Commands that are killed at each of their steps: what was before stays whole, nothing is left."""

from __future__ import annotations

import os
import sqlite3
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine

from cerne import faults
from cerne.host.members import Members
from cerne.host.process import ProcessIdentity
from cerne.manager import Home, Machine, Manager, State
from cerne.manager.store.found import found_layers
from cerne.spec.machine import machine_spec
from cerne.storage.overlay import chain

_KILLED = 99
_MOST_STEPS = 40

Operation = Callable[[Manager], None]


def _snapshot(manager: Manager) -> None:
    manager.get("web").snapshot("new")


def _suspend(manager: Manager) -> None:
    manager.get("web").suspend()


def _wake(manager: Manager) -> None:
    manager.get("web").wake()


def _fork(manager: Manager) -> None:
    manager.get("web").fork(2)


def _restore(manager: Manager) -> None:
    manager.snapshot("old").restore()


def _restore_as(manager: Manager) -> None:
    manager.snapshot("old").restore_as("copy")


def _export(manager: Manager) -> None:
    target = manager.home.data / "carried"
    target.mkdir(exist_ok=True)
    manager.snapshot("old").export(target / "old.cerne")


def _remove_snapshot(manager: Manager) -> None:
    manager.snapshot("old").remove()


def run_killed_at(step: int, operation: Operation, home: Home, *, forks: bool = True) -> bool:
    """Run an operation in a process of its own that ends at a step; False where there is none."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            engine = FakeEngine()
            engine.forks = forks
            left = step

            def die(_name: str) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(_KILLED)

            faults.hook = die
            operation(Manager(home, lambda _requested: engine))
            status = 0
        except Exception:  # noqa: BLE001 - the process ends here, whatever it is
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, _KILLED)
    return status == _KILLED


def _processes(home: Home) -> set[ProcessIdentity]:
    return {
        process
        for runtime in home.machines_runtime.iterdir()
        for process in Members(runtime).alive()
    }


def _disk(home: Home, machine: Machine) -> list[Path]:
    return [path for path, _ in chain(home.root_disk(machine.id), "qcow2")]


def _check_whole(manager: Manager, expected: Callable[[str], bool]) -> None:
    """Everything that there is belongs to a machine or a snapshot, once, and can be used."""
    home, machines = manager.home, manager.machines()
    records = [machine.record for machine in machines]
    assert all(expected(machine.name) for machine in machines)
    assert {path.name for path in home.machines.iterdir()} == {record.id for record in records}
    live = {record.process for record in records if record.process is not None}
    assert _processes(home) == live
    running = {record.id for record in records if record.state.live}
    assert {path.name for path in home.machines_runtime.iterdir()} == running
    kept = {snapshot.id for snapshot in manager.snapshots() if snapshot.memory}
    assert {path.name for path in home.snapshots.iterdir()} == kept
    disks = [_disk(home, machine) for machine in machines]
    assert len({files[0] for files in disks}) == len(disks)
    used = {path for files in disks for path in files}
    for snapshot in manager.snapshots():
        assert snapshot.layer is not None
        used |= {path for path, _ in chain(snapshot.layer, "qcow2")}
    assert set(home.layers.iterdir()) <= used
    _check_references(manager)
    known = {record.id for record in records} | {each.id for each in manager.snapshots()}
    assert {path.stem for path in home.locks.glob("[0-9a-f]*.lock")} <= known


def _check_references(manager: Manager) -> None:
    """The rows say of layers no less than the headers of the disks."""
    home, store = manager.home, manager._store
    assert store.known_layers() == {path.stem for path in home.layers.iterdir()}
    found = found_layers(home.layers, home.machines, ())
    for machine_id, layers in found.machines.items():
        assert layers <= store.layers_of(machine_id)
    with sqlite3.connect(home.store) as database:
        parents = dict(database.execute("SELECT id, parent FROM layers"))
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()
    assert {layer: parents[layer] for layer in found.parents} == found.parents


@pytest.mark.parametrize(
    ("operation", "states", "forks"),
    [
        (_snapshot, {State.RUNNING}, True),
        (_suspend, {State.RUNNING, State.SUSPENDED}, True),
        (_wake, {State.RUNNING, State.SUSPENDED}, True),
        (_fork, {State.RUNNING}, True),
        (_fork, {State.RUNNING}, False),
        (_restore, {State.RUNNING, State.STOPPED, State.FAILED}, True),
        (_restore_as, {State.RUNNING}, True),
        (_remove_snapshot, {State.RUNNING}, True),
        (_export, {State.RUNNING}, True),
    ],
)
def test_killed_at_every_step(
    manager: Manager,
    machine: Machine,
    asked: list[str],
    operation: Operation,
    states: set[State],
    forks: bool,
) -> None:
    machine.start()
    machine.snapshot("old")
    steps = 0
    for step in range(_MOST_STEPS):
        if operation is _wake and machine.state is State.RUNNING:
            machine.suspend()
        before, disk = machine.record.process, _disk(manager.home, machine)
        if not run_killed_at(step, operation, manager.home, forks=forks):
            break
        steps += 1
        assert machine.state in states
        if machine.record.state is State.RUNNING and before is not None and operation != _restore:
            assert machine.record.process == before
        if operation is _restore and machine.state is State.FAILED:
            assert _disk(manager.home, machine) == disk
        # The sweep that begins the next command.
        manager.create(machine_spec(name="next", image="blank", memory="64M")).remove()
        _check_whole(manager, lambda name: name in ("web", "web-1", "web-2", "copy"))
        for other in manager.machines():
            if other.id != machine.id:
                assert other.state is State.RUNNING
                other.remove(force=True)
        for snapshot in manager.snapshots():
            if snapshot.name != "old":
                snapshot.remove()
        if not manager.snapshots():
            machine.snapshot("old")
        assert not any((manager.home.data / "carried").glob("*"))
        if machine.state in (State.STOPPED, State.FAILED):
            machine.start()
    assert 0 < steps < _MOST_STEPS
