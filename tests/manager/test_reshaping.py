"""Changing what a stopped machine is made of: memory, CPUs, disk, network, ports, mounts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine
from tests.manager.killed import adjust_killed_at

from cerne.errors import CapacityError, InputError, StateError
from cerne.manager import Machine, Manager
from cerne.manager.capacity import needs_of
from cerne.manager.machines.disks import root_size
from cerne.manager.store.promises import Resource
from cerne.spec.asked import Adjustment
from cerne.spec.machine import machine_spec
from cerne.units import GIB, MIB


def test_its_next_start_has_all_of_it(
    manager: Manager, machine: Machine, engine: FakeEngine, tmp_path: Path
) -> None:
    machine.start()
    machine.kill()
    machine.adjust(memory="128M", cpus=2, disk="1G", ports=["0:80"], mounts=[f"{tmp_path}:/srv:ro"])
    assert (machine.record.memory, machine.record.cpus) == (128 * MIB, 2)
    machine.start()
    plan = engine.plans[-1]
    assert (plan.memory, plan.cpus) == (128 * MIB, 2)
    assert [port.guest_port for port in plan.forwards] == [80]
    assert [(share.source, share.read_only) for share in plan.shares] == [(tmp_path, True)]
    assert root_size(machine._context) == GIB
    assert manager.get("web").spec.root_size == GIB


def test_ports_of_the_host_are_opened_and_closed_for_the_next_start(machine: Machine) -> None:
    machine.adjust(ports=["8080:80"], host_access=[5432])
    (card,) = machine.spec.nics
    assert (len(card.ports), card.host_access) == (1, (5432,))
    machine.adjust(host_access=["none"])
    (card,) = machine.spec.nics
    assert (len(card.ports), card.host_access) == (1, ())


def test_values_that_go_together_are_checked_together(machine: Machine) -> None:
    machine.adjust(cpus=2)
    machine.adjust(cpus=1, max_cpus=1)
    assert (machine.spec.cpus, machine.spec.max_cpus) == (1, 1)


def test_what_was_given_is_taken_away_by_none(machine: Machine, tmp_path: Path) -> None:
    machine.adjust(ports=["8080:80"], mounts=[f"{tmp_path}:/srv"])
    machine.adjust(ports=["none"])
    left = machine.spec
    assert (len(left.ports), len(left.mounts)) == (0, 1)
    machine.adjust(mounts=["none"], network="none")
    left = machine.spec
    assert (len(left.mounts), left.network) == (0, "none")


@pytest.mark.parametrize("changes", [{"disk": "2G"}, {"ports": ["0:80"]}, {"host_access": [5432]}])
def test_a_machine_that_runs_or_is_suspended_takes_none_of_it(
    machine: Machine, changes: Adjustment
) -> None:
    machine.start()
    before = machine.spec
    with pytest.raises(StateError, match="only while it is stopped: its process") as said:
        machine.adjust(**changes)
    assert "cerne stop web" in said.value.hint
    machine.suspend()
    with pytest.raises(StateError, match="saved memory") as said:
        machine.adjust(**changes)
    assert "cerne wake web; cerne stop web" in said.value.hint
    assert machine.spec == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "60T"}, "60T of memory"),
        ({"cpus": 64}, "64 CPUs"),
        ({"disk": "512K"}, "the size of a disk is 512K"),
        ({"ports": ["80"]}, "80"),
        ({"mounts": ["/nosuch:/srv"]}, "/nosuch does not exist"),
        ({"network": "tap:x", "ports": ["0:80"]}, "publishes no ports"),
    ],
)
def test_what_is_not_possible_changes_nothing(
    machine: Machine, changes: Adjustment, words: str
) -> None:
    before = machine.spec
    with pytest.raises((InputError, CapacityError), match=words):
        machine.adjust(**changes)
    assert machine.spec == before


def test_a_disk_never_shrinks(machine: Machine) -> None:
    machine.adjust(disk="1G")
    with pytest.raises(InputError, match="has 1G, and does not shrink to 512M"):
        machine.adjust(disk="512M")
    assert machine.spec.root_size == GIB


def test_a_disk_that_the_host_has_no_room_for_stays(manager: Manager, machine: Machine) -> None:
    manager.set_overcommit({"disk": 1e-9})
    with pytest.raises(CapacityError, match="disk space"):
        machine.adjust(disk="2G")
    assert machine.spec.root_size is None
    assert root_size(machine._context) == MIB


@pytest.mark.parametrize("step", ["changed", "disk grown"])
def test_a_command_that_is_killed_is_finished_by_the_next_start(
    manager: Manager, machine: Machine, step: str
) -> None:
    adjust_killed_at(step, manager.home, disk="2G")
    machine.start()
    assert machine.spec.root_size == 2 * GIB
    assert root_size(machine._context) == 2 * GIB


def test_a_snapshot_of_another_shape_is_not_restored_over_it(
    manager: Manager, machine: Machine
) -> None:
    machine.start()
    machine.snapshot("then")
    machine.kill()
    machine.adjust(memory="128M")
    with pytest.raises(StateError, match="another memory than in then"):
        manager.snapshot("then").restore()
    machine.adjust(memory="64M")
    manager.snapshot("then").restore()
    machine.kill()
    machine.adjust(disk="1G")
    with pytest.raises(StateError, match="another size of its root disk"):
        manager.snapshot("then").restore()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"memory": "65M", "memory_hugepages": "yes"}, "65M of memory are not whole hugepages"),
        ({"memory_hugepages": "yes", "memory_merge": "yes"}, "merges no hugepages"),
        ({"memory_merge": "yes", "isolation": "strict"}, "strict isolation shares no memory"),
        ({"memory_merge": "maybe"}, "neither yes nor no"),
    ],
)
def test_kinds_of_memory_that_exclude_each_other_are_refused(
    fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        machine_spec(**{"name": "web", "image": "blank", "memory": "64M", **fields})


def test_memory_in_hugepages_is_not_counted_as_memory(
    manager: Manager, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = machine_spec(name="web", image="blank", memory="64M", memory_hugepages="yes")
    monkeypatch.setattr("cerne.host.supply.hugepages", tuple)
    with pytest.raises(CapacityError, match="64M in hugepages, of which 0 are set aside"):
        manager.create(spec)
    engine.needs_beside = 8 * MIB
    assert needs_of(spec, engine.overhead)[Resource.MEMORY] == 8 * MIB


def test_a_new_machine_is_made_of_the_same_options() -> None:
    spec = machine_spec(name="web", image="blank", memory="64M", ports=["8080:80"])
    assert spec.changed(memory="1G", ports="none").ports == ()
    assert spec.changed(cpus=2).ports == spec.ports
