"""Devices that come and go, on both engines, with guests of a few bytes that do not heed them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.engine.fleet import Fleet
from tests.engine.test_qemu_saving import HALTED, Machines

from cerne.arch.x86 import layout
from cerne.engine.plan import SLOTS, DiskPlan, LaunchPlan, UserNic
from cerne.engine.qmp.unplugging import slots_among
from cerne.errors import (
    ConflictError,
    EngineError,
    GuestTimeoutError,
    InputError,
    StorageError,
)
from cerne.storage.overlay import chain, create_empty, create_overlay
from cerne.units import MIB
from cerne.vmm.slot_names import device_name

_MAC = "02:00:00:00:00:01"


def _disk(home: Path, name: str, slot: int = 3) -> DiskPlan:
    path = home / f"{name}.qcow2"
    create_empty(path, MIB)
    return DiskPlan(path, "qcow2", serial=name, slot=slot)


@pytest.fixture
def machines(home: Path, qemu: Path) -> Iterator[Machines]:
    # A guest that never rests may hang QEMU where it refuses a device: it waits until all readers
    # of RCU are done (drain_call_rcu), which TCG's processor is only when it leaves its loop.
    with contextlib.closing(Machines(home, HALTED)) as made:
        yield made


def test_both_sides_speak_of_the_same_slots() -> None:
    assert SLOTS == layout.HOTPLUG_SLOTS
    names = [device_name(slot) for slot in range(SLOTS)]
    assert slots_among([*names, "vd0", "hot", "agents"]) == frozenset(range(SLOTS))


def test_a_native_machine_takes_and_gives_back(fleet: Fleet, home: Path) -> None:
    instance = fleet.instance("a")
    fleet.status("a")
    before = fleet.files("a")
    disk = _disk(home, "data")
    assert instance.plugged() == frozenset()
    instance.plug(disk)
    instance.plug(UserNic(_MAC, slot=0))
    assert instance.plugged() == {0, 3}
    with pytest.raises(EngineError, match="already"):
        instance.plug(UserNic(_MAC, slot=3))
    with pytest.raises(GuestTimeoutError, match="--force"):
        instance.unplug(3, 0.1, force=False)
    assert instance.plugged() == {0, 3}
    for slot in (3, 0, 0):
        instance.unplug(slot, 0.1, force=True)
    instance.unplug(3, 0.1, force=False)
    assert instance.plugged() == frozenset()
    assert fleet.files("a") == before
    with pytest.raises(StorageError):
        instance.plug(replace(disk, path=home / "none", format="raw"))
    assert fleet.say("a", b"i") == 3


def test_what_goes_on_from_a_native_machine_has_its_devices(fleet: Fleet, home: Path) -> None:
    disk = _disk(home, "data")
    fleet.instance("a").plug(disk)
    layer, child = home / "layer", home / "child.qcow2"
    fleet.change("a", disks=(disk,))
    disk.path.rename(layer)
    create_overlay(layer, "qcow2", disk.path)
    create_overlay(layer, "qcow2", child)
    fleet.change("b", disks=(replace(disk, path=child),))
    fleet.fork("a", ["b"])
    assert fleet.instance("b").plugged() == {3}
    assert [path for path in fleet.files("b") if path == str(child)]
    assert not [path for path in fleet.files("b") if path == str(disk.path)]
    # The next one goes on from what the fork saved, with other devices: it is refused.
    saved = fleet.save("b", resume=False)
    fleet.change("c", disks=(replace(disk, path=child, slot=4),))
    with pytest.raises(EngineError, match="other devices"):
        fleet.start("c", saved)
    fleet.change("d", disks=(replace(disk, path=child),))
    fleet.start("d", saved)
    assert fleet.instance("d").plugged() == {3}
    assert fleet.say("d", b"i") == 3
    fleet.instance("d").unplug(3, 0.1, force=True)


def test_a_forked_or_saved_machine_waits_for_no_mark_in_its_overlay(
    fleet: Fleet, home: Path
) -> None:
    disk = _disk(home, "data")
    fleet.instance("a").plug(disk)
    fleet.change("a", disks=(disk,))
    actions: tuple[Callable[[], object], ...] = (
        lambda: fleet.fork("a", ["b"]),
        lambda: fleet.save("a"),
    )
    for index, action in enumerate(actions):
        layer = home / f"layer{index}"
        disk.path.rename(layer)
        create_overlay(layer, "qcow2", disk.path)
        child = home / f"child{index}.qcow2"
        create_overlay(layer, "qcow2", child)
        fleet.change("b", disks=(replace(disk, path=child),))
        action()
        # The mark that the counts are not valid (docs/interop/qcow2.txt of QEMU).
        assert disk.path.read_bytes()[79] & 1


def test_a_shared_disk_is_written_by_one_machine_alone(fleet: Fleet, home: Path) -> None:
    instance = fleet.instance("a")
    disk = replace(_disk(home, "data"), shared=True)
    instance.plug(disk)
    fleet.change("b", disks=(disk,))
    with pytest.raises(ConflictError, match="another machine"):
        fleet.start("b")
    instance.unplug(3, 0.1, force=True)
    fleet.start("b")
    with pytest.raises(ConflictError, match="another machine"):
        instance.plug(replace(disk, read_only=True))
    fleet.kill("b")
    instance.plug(replace(disk, read_only=True))
    fleet.change("c", disks=(replace(disk, read_only=True),))
    fleet.start("c")


def _with(plan: LaunchPlan, *disks: DiskPlan) -> LaunchPlan:
    return replace(plan, disks=disks)


def test_a_qemu_machine_takes_and_keeps(machines: Machines, home: Path) -> None:
    plan = machines.plan("a")
    machines.start(plan)
    instance = machines.instance(plan)
    disk = _disk(home, "data")
    instance.plug(disk)
    instance.plug(UserNic(_MAC, slot=0))
    assert instance.plugged() == {0, 3}
    with pytest.raises(ConflictError, match="already"):
        instance.plug(disk)
    with pytest.raises(GuestTimeoutError):
        instance.unplug(3, 0.1, force=False)
    with pytest.raises(GuestTimeoutError):
        instance.unplug(3, 0.1, force=False)
    with pytest.raises(InputError, match="stop"):
        instance.unplug(3, 0.1, force=True)
    instance.unplug(5, 0.1, force=False)
    assert instance.plugged() == {0, 3}


def test_what_qemu_refuses_leaves_nothing(machines: Machines, home: Path) -> None:
    plan = machines.plan("a")
    machines.start(plan)
    instance = machines.instance(plan)
    disk = _disk(home, "data")
    bad = home / "bad"
    bad.write_bytes(b"QFI\xfb" + bytes(700))
    with pytest.raises(EngineError):
        instance.plug(replace(disk, path=bad))
    with pytest.raises(EngineError):
        instance.plug(UserNic("0200:0000:0001", slot=3))
    instance.plug(disk)
    assert instance.plugged() == {3}


def test_what_goes_on_from_a_qemu_machine_has_its_devices(machines: Machines, home: Path) -> None:
    plan = machines.plan("a")
    cold, hot = _disk(home, "cold", 1), _disk(home, "hot", 6)
    machines.start(_with(plan, cold))
    instance = machines.instance(plan)
    instance.plug(hot)
    plan = _with(plan, cold, hot)
    for disk in (cold, hot):
        layer = disk.path.with_suffix(".layer")
        disk.path.rename(layer)
        create_overlay(layer, "qcow2", disk.path)
    instance.save(machines.saved, plan.disks, resume=True)
    assert instance.plugged() == {1, 6}
    other = machines.plan("b")
    fresh = []
    for disk in (cold, hot):
        path = disk.path.with_suffix(".b")
        create_overlay(disk.path.with_suffix(".layer"), "qcow2", path)
        fresh.append(replace(disk, path=path))
    machines.start(replace(_with(other, *fresh), saved=machines.saved))
    assert machines.instance(other).plugged() == {1, 6}
    assert chain(fresh[0].path, "qcow2")[1][0] == cold.path.with_suffix(".layer")
