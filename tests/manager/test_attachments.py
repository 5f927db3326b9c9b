"""Disks and network cards that are added to machines and taken from them, over the fake engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine
from tests.manager.test_faults import run_killed_at

from cerne.client import Host
from cerne.errors import (
    EngineError,
    GuestTimeoutError,
    ImageError,
    InputError,
    NotFoundError,
    StateError,
)
from cerne.manager import Machine, Manager, State
from cerne.manager.on_host import found_disk
from cerne.spec.disk import Disk
from cerne.spec.machine import machine_spec
from cerne.storage.overlay import chain, create_empty
from cerne.units import MIB

_MOST_STEPS = 40


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "data.raw"
    path.write_bytes(bytes(MIB))
    return path


def _plugged(machine: Machine) -> set[int]:
    runtime = machine._context.runtime
    return set(json.loads((runtime / "plugged").read_text()))


def _own_files(manager: Manager, machine: Machine) -> set[str]:
    files = manager.home.machine_directory(machine.id).glob("*.qcow2*")
    return {path.name for path in files}


def test_disks_of_a_new_machine_are_there_when_it_starts(
    host: Host, engine: FakeEngine, raw: Path
) -> None:
    spec = machine_spec(name="db", image="blank", memory="64M", data_disks=["2M", f"{raw}:ro"])
    machine = host.create(spec)
    machine.start()
    root, own, shared = engine.plans[-1].disks
    assert (root.serial, root.slot, root.shared) == ("root", None, False)
    assert (own.serial, own.slot, own.shared, own.format) == ("data1", 0, False, "qcow2")
    assert (shared.path, shared.slot, shared.shared, shared.read_only) == (raw, 1, True, True)
    assert chain(own.path, "qcow2") == [(own.path, "qcow2")]


def test_a_disk_comes_and_goes_while_it_runs(
    manager: Manager, engine: FakeEngine, machine: Machine, raw: Path
) -> None:
    machine.start()
    assert machine.attach_disk("3M").serial == "data1"
    assert machine.attach_disk(raw, "shared").slot == 1
    assert machine.attach_disk(2 * MIB, read_only=True).serial == "data2"
    assert _plugged(machine) == {0, 1, 2}
    machine.restart(timeout=0)
    assert [disk.serial for disk in engine.plans[-1].disks] == ["root", "data1", "shared", "data2"]
    assert machine.detach_disk("shared") == raw
    kept = machine.detach_disk("1")
    assert kept == manager.home.disks / "web-data1.qcow2"
    assert kept.exists()
    assert _plugged(machine) == {2}
    assert _own_files(manager, machine) == {"root.qcow2", "data-data2.qcow2"}
    assert machine.attach_disk("3M").slot == 0
    assert machine.detach_disk("data1").name == "web-data1-2.qcow2"
    machine.remove(force=True)
    assert {path.name for path in manager.home.disks.iterdir()} == {
        "web-data1.qcow2",
        "web-data1-2.qcow2",
    }


def test_a_machine_that_does_not_run_has_it_at_its_next_start(
    engine: FakeEngine, machine: Machine
) -> None:
    machine.attach_disk("3M")
    assert machine.attach_nic().slot == 1
    machine.start()
    assert {*engine.plans[-1].slots} == {0, 1}
    machine.stop(timeout=0)
    machine.detach_disk("data1")
    machine.detach_nic(2)
    machine.start()
    assert engine.plans[-1].slots == {}


def test_network_cards_have_addresses_of_their_own(machine: Machine) -> None:
    machine.start()
    for _ in range(2):
        machine.attach_nic()
    assert [*machine.nics()] == [0, 1, 2]
    assert len(set(machine.nics().values())) == 3
    address = machine.nics()[2]
    machine.detach_nic(1)
    assert machine.nics()[2] == address
    for number in (0, 1, 9):
        with pytest.raises(NotFoundError):
            machine.detach_nic(number)


def test_a_disk_stays_in_the_format_in_which_it_was_added(
    manager: Manager, engine: FakeEngine, machine: Machine, raw: Path, tmp_path: Path
) -> None:
    machine.attach_disk(str(raw))
    # What a guest may do to be given another file of the host at the next start.
    raw.write_bytes(b"QFI\xfb" + bytes(MIB - 4))
    machine.start()
    assert engine.plans[-1].disks[1].format == "raw"
    machine.detach_disk("data1")
    with pytest.raises(ImageError):
        machine.attach_disk(str(raw))
    disk = machine.attach_disk(f"{raw}:format=raw:ro")
    assert (disk.format, disk.read_only, disk.path) == ("raw", True, raw)


def test_a_path_is_a_path_whatever_it_looks_like(
    machine: Machine, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(raw.parent)
    raw.rename("10G")
    assert machine.attach_disk(Path("10G")).path == raw.with_name("10G")
    assert machine.attach_disk("10G").path is None


def test_what_cannot_be_is_refused_and_leaves_nothing(
    manager: Manager, engine: FakeEngine, machine: Machine, tmp_path: Path
) -> None:
    machine.start()
    spec = machine.spec
    odd, disk = tmp_path / "odd", tmp_path / "vmdk"
    odd.write_bytes(b"x" * 700)
    disk.write_bytes(b"KDMV" + bytes(508))
    refusals: list[tuple[str, str | None, type[Exception]]] = [
        ("1M", "root", InputError),
        ("1M", "a b", InputError),
        ("1M", "x" * 21, InputError),
        ("100K", None, InputError),
        (str(tmp_path / "none"), None, NotFoundError),
        (str(tmp_path), None, ImageError),
        (str(odd), None, ImageError),
        (str(disk), None, ImageError),
    ]
    for what, serial, error in refusals:
        with pytest.raises(error):
            machine.attach_disk(what, serial)
    engine.failure = EngineError("it does not fit")
    with pytest.raises(EngineError):
        machine.attach_disk("1M")
    with pytest.raises(EngineError):
        machine.attach_nic()
    engine.failure = None
    assert machine.spec == spec
    assert _own_files(manager, machine) == {"root.qcow2"}
    machine.attach_disk("1M")
    with pytest.raises(InputError, match="twice"):
        machine.attach_disk("1M", "data1")
    for _ in range(7):
        machine.attach_nic()
    with pytest.raises(InputError, match="all 8 slots"):
        machine.attach_disk("1M")


def test_a_guest_that_does_not_let_go_keeps_it(engine: FakeEngine, machine: Machine) -> None:
    machine.start()
    machine.attach_disk("1M")
    engine.failure = GuestTimeoutError("it did not let go")
    with pytest.raises(GuestTimeoutError):
        machine.detach_disk("data1")
    assert machine.spec.data_disks
    machine.detach_disk("data1", force=True)
    assert not machine.spec.data_disks


def test_a_machine_that_is_asleep_keeps_what_it_has(machine: Machine, asked: list[str]) -> None:
    machine.start()
    machine.attach_disk("1M")
    machine.pause()
    with pytest.raises(StateError, match="resume"):
        machine.detach_disk("data1")
    machine.suspend()
    with pytest.raises(StateError, match="suspended"):
        machine.attach_disk("1M")
    with pytest.raises(StateError, match="suspended"):
        machine.detach_disk("data1")
    machine.wake()
    machine.detach_disk("data1")


def test_what_goes_on_from_it_has_disks_of_its_own(
    manager: Manager, engine: FakeEngine, machine: Machine, asked: list[str]
) -> None:
    machine.start()
    machine.attach_disk("1M")
    machine.snapshot("s")
    (child,) = machine.fork()
    other = manager.snapshot("s").restore_as("other")
    files = [manager.home.disk(each.id, "data1") for each in (machine, child, other)]
    chains = [[path for path, _ in chain(file, "qcow2")] for file in files]
    assert len({each[0] for each in chains}) == 3
    layer = manager.snapshot("s").layers["data1"]
    assert all(layer in each for each in chains)
    kept = child.detach_disk("data1")
    assert chain(kept, "qcow2") == [(kept, "qcow2")]
    with pytest.raises(StateError, match="--as"):
        machine.attach_nic()
        manager.snapshot("s").restore()
    machine.detach_nic(2)
    manager.snapshot("s").restore()
    assert chain(files[0], "qcow2")[1][0] == layer
    for each in (machine, child, other):
        each.remove(force=True)
    manager.snapshot("s").remove()
    assert list(manager.home.layers.iterdir()) == []
    assert kept.exists()


def test_a_disk_of_others_is_not_doubled(machine: Machine, raw: Path, tmp_path: Path) -> None:
    machine.start()
    machine.attach_disk(raw, "shared")
    for refused in (machine.fork, machine.snapshot, machine.suspend):
        with pytest.raises(InputError, match="detach web shared"):
            refused()
    machine.detach_disk("shared")
    machine.attach_disk(raw, "shared", read_only=True)
    machine.snapshot("s")
    with pytest.raises(InputError, match="archive"):
        machine._context.store.find_snapshot("s")
        Manager(machine._home).snapshot("s").export(tmp_path / "file")


def test_what_a_guest_writes_does_not_change_how_it_is_read(machine: Machine, raw: Path) -> None:
    machine.attach_disk(raw, "shared")
    create_empty(raw.with_name("other"), MIB)
    shutil.copyfile(raw.with_name("other"), raw)
    assert machine.spec.data_disks[0].format == "raw"
    assert found_disk(Disk.parse(str(raw), "x", 0)).format == "qcow2"


def _attach(manager: Manager) -> None:
    manager.get("web").attach_disk("1M")


def _detach(manager: Manager) -> None:
    manager.get("web").detach_disk("data1")


def _attach_nic(manager: Manager) -> None:
    manager.get("web").attach_nic()


def _detach_nic(manager: Manager) -> None:
    manager.get("web").detach_nic(1)


@pytest.mark.parametrize("operation", [_attach, _detach, _attach_nic, _detach_nic])
def test_killed_at_every_step(
    manager: Manager, machine: Machine, asked: list[str], operation: Callable[[Manager], None]
) -> None:
    machine.start()
    steps, kept = 0, 0
    for step in range(_MOST_STEPS):
        if operation is _detach and not machine.spec.data_disks:
            machine.attach_disk("1M", "data1")
        if operation is _detach_nic and not machine.spec.added_nics:
            machine.attach_nic()
        before = machine.record.process
        if not run_killed_at(step, operation, manager.home):
            break
        steps += 1
        assert (machine.state, machine.record.process) == (State.RUNNING, before)
        plugged = _plugged(machine)
        # The next operation puts right what was left.
        machine.snapshot("s")
        if operation in (_detach, _detach_nic):
            # What was taken from the guest does not come back.
            assert _plugged(machine) == plugged
            assert machine.record.doing == ""
        manager.snapshot("s").remove()
        assert _plugged(machine) == {*machine._context.plan().slots}
        disks = {f"data-{disk.serial}.qcow2" for disk in machine.spec.data_disks}
        assert _own_files(manager, machine) == {"root.qcow2", *disks}
        if operation is _detach:
            # It is the machine's still, or was kept; it is never gone.
            now = len(list(manager.home.disks.iterdir()))
            assert (now - kept) + len(disks) == 1
            kept = now
        for disk in machine.spec.data_disks if operation is _attach else ():
            machine.detach_disk(disk.serial)
        for nic in machine.spec.added_nics if operation is _attach_nic else ():
            machine.detach_nic(nic.number)
    assert 0 < steps < _MOST_STEPS
