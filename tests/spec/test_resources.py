"""Guarantees, limits and weights, as users write them and as they are stored."""

from __future__ import annotations

from decimal import Decimal

import pytest

from cerne.errors import InputError
from cerne.spec.machine import MachineSpec, machine_spec
from cerne.spec.resources import (
    CpuResources,
    DiskResources,
    MemoryResources,
    NetworkResources,
    Resources,
    shown_resources,
)
from cerne.spec.upgrade import stored_spec
from cerne.units import GIB, MIB


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1.5", "1.5"),
        ("50%", "0.5"),
        ("250%", "2.5"),
        (" 2.500 ", "2.5"),
        (10, "10"),
        (0.1, "0.1"),
        (Decimal("1.50"), "1.5"),
    ],
)
def test_cpus_have_one_notation(written: object, meant: str) -> None:
    spec = machine_spec(name="a", cpus=16, cpu_limit=written)
    assert str(spec.resources.cpu.limit) == meant
    assert f'"limit":"{meant}"' in spec.model_dump_json()
    assert stored_spec(spec.model_dump_json(), "a") == spec


def test_each_value_has_a_name() -> None:
    spec = machine_spec(
        name="a",
        cpus=2,
        memory="1G",
        cpu_guarantee="1.5",
        cpu_limit=2,
        cpu_weight="300",
        cpu_pin="2, 0-1,8",
        numa_node="1",
        memory_guarantee="512M",
        memory_limit="1.5G",
        memory_swap="no",
        disk_iops="500",
        disk_rate="20M",
        disk_weight=50,
        network_rate="10M/2M",
        pids_limit=200,
    )
    assert spec.resources == Resources(
        cpu=CpuResources(
            guarantee=Decimal("1.5"), limit=Decimal(2), weight=300, pin="0-2,8", numa_node=1
        ),
        memory=MemoryResources(guarantee=512 * MIB, limit=GIB + 512 * MIB, swap=False),
        disk=DiskResources(iops=500, rate=20 * MIB, weight=50),
        network=NetworkResources(receive=10 * MIB, send=2 * MIB),
        pids=200,
    )
    assert stored_spec(spec.model_dump_json(), "a") == spec


def test_values_are_shown_by_their_names() -> None:
    asked = {
        "cpu_limit": "1.5",
        "cpu_weight": 300,
        "cpu_pin": "0-3,8",
        "numa_node": 0,
        "memory_limit": "2G",
        "memory_swap": "no",
        "disk_iops": 500,
        "disk_rate": "20M",
        "network_rate": "10M/2M",
        "pids_limit": 200,
    }
    spec = machine_spec(name="a", **asked)
    assert shown_resources(spec.resources) == {name: str(value) for name, value in asked.items()}
    assert shown_resources(machine_spec(name="a").resources) == {}
    for rate in ("10M", "none/2M", "2M/none"):
        limited = machine_spec(name="a", network_rate=rate).resources
        assert shown_resources(limited) == {"network_rate": rate}


def test_one_rate_is_for_both_directions() -> None:
    network = machine_spec(name="a", network_rate="10M").resources.network
    assert (network.receive, network.send) == (10 * MIB, 10 * MIB)


def test_a_change_keeps_the_other_values_and_none_removes_one() -> None:
    spec = machine_spec(name="a", cpu_limit=1, cpu_weight=50, network_rate="1M")
    changed = spec.changed(cpu_limit="none", disk_iops=100, network_rate="none")
    assert changed.resources == Resources(cpu=CpuResources(weight=50), disk=DiskResources(iops=100))
    assert not changed.resources.is_empty
    assert changed.changed(cpu_weight="none", disk_iops="none").resources.is_empty


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cpu_limit": "fast"}, "'fast' is not a number of CPUs"),
        ({"cpu_limit": "50"}, "50 CPUs limits nothing: the machine has 1"),
        ({"cpu_limit": "-1"}, "'-1' is not a number of CPUs"),
        ({"cpu_limit": "nan"}, "'nan' is not a number of CPUs"),
        ({"cpu_limit": "1e3"}, "'1e3' is not a number of CPUs"),
        ({"cpu_limit": float("inf")}, "'inf' is not a number of CPUs"),
        ({"cpu_limit": 0}, "0 is not a number of CPUs that"),
        ({"cpu_limit": "0.1%"}, "0.1% is not a number of CPUs that"),
        ({"cpu_limit": "33.3333"}, "'33.3333' is not a number of CPUs"),
        ({"cpu_limit": 256}, "256 is not a number of CPUs that"),
        ({"cpu_limit": True}, "cpu_limit must be"),
        ({"cpu_pin": ""}, "'' is not a list of CPUs"),
        ({"cpu_pin": "3-1"}, "'3-1' is not a list of CPUs"),
        ({"cpu_pin": "0,"}, "'0,' is not a list of CPUs"),
        ({"cpu_pin": "8192"}, "'8192' is not a list of CPUs"),
        ({"cpu_pin": "fast"}, "'fast' is not a list of CPUs"),
        ({"cpu_pin": True}, "cpu_pin must be"),
        ({"cpu_pin": "0", "cpu_guarantee": 2, "cpus": 2}, "1 CPU that it is pinned to: 0"),
        ({"numa_node": -1}, "numa_node must be"),
        ({"numa_node": "first"}, "numa_node must be an integer, not 'first'"),
        ({"cpu_weight": "heavy"}, "cpu_weight must be an integer, not 'heavy'"),
        ({"memory_swap": "maybe"}, "'maybe' is neither yes nor no"),
        ({"disk_weight": 0}, "0 is not a weight"),
        ({"disk_iops": 0}, "disk_iops must be"),
        ({"disk_rate": "1"}, "the disk rate is 1"),
        ({"network_rate": "1M/slow"}, "'slow' is not a size"),
        ({"network_rate": "1M/"}, "'' is not a size"),
        ({"pids_limit": 1}, "pids_limit must be"),
        ({"memory_guarantee": "1.5M"}, "the memory guarantee is 1.5M"),
        ({"memory_limit": MIB * 600 + 1}, "not a whole number of MiB"),
        ({"cpu_guarantee": 1, "cpu_limit": "50%"}, "the guarantee of 1 CPU is above the limit"),
        ({"cpu_guarantee": 2}, "the guarantee of 2 CPUs is above the 1 CPU of the machine"),
        ({"memory_guarantee": "1G"}, "1G of memory is guaranteed to a machine with 512M"),
        ({"memory_limit": "256M"}, "the memory limit of 256M is below the machine's memory"),
        ({"resources": {"cpu": {"speed": 1}}}, "a machine has no field resources.cpu.speed"),
        ({"resources": {}, "cpu_weight": 1}, "resources and cpu_weight are given"),
    ],
)
def test_wrong_values_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as refused:
        machine_spec(name="a", **fields)
    assert said in refused.value.message
    assert refused.value.hint
    if "resources" not in fields:
        with pytest.raises(InputError):
            MachineSpec(name="a").changed(**fields)
