"""Where machines run: the CPUs and NUMA nodes of a host, by the files of another one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from cerne.errors import CapacityError
from cerne.host.placement import (
    Placement,
    Topology,
    pin_processes,
    placement_finding,
    placement_of,
    topology,
)
from cerne.spec.resources import CpuResources


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Topology:
    """Eight CPUs in two nodes with memory, and a third without; Cerne may not use all of it."""
    files = {
        "cpu/online": "0-7",
        "node/has_memory": "0-1,3",
        "node/node0/cpulist": "0-3",
        "node/node1/cpulist": "4-7",
        "node/node3/cpulist": "",
        "status": "Name:\tx\nMems_allowed_list:\t0,3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 4})
    return topology(tmp_path, tmp_path / "status")


def test_what_there_is(host: Topology) -> None:
    assert host.online == frozenset(range(8))
    assert host.allowed == {0, 1, 2, 4}
    assert [(node.number, node.cpus, node.allowed) for node in host.nodes] == [
        (0, {0, 1, 2}, True),
        (1, {4}, False),
        (3, frozenset(), True),
    ]
    assert host.words == "CPUs 0-2,4; NUMA node 0: CPUs 0-2; node 3: CPUs none"


@pytest.mark.parametrize(
    ("asked", "placed"),
    [
        ({}, Placement()),
        ({"pin": "4,0"}, Placement("0,4")),
        ({"numa_node": 0}, Placement("0-2", "0")),
        ({"numa_node": 3, "pin": "1-2"}, Placement("1-2", "3")),
    ],
)
def test_a_machine_is_placed(asked: dict[str, object], placed: Placement, host: Topology) -> None:
    assert placement_of(CpuResources.model_validate(asked), host) == placed


@pytest.mark.parametrize(
    ("asked", "said", "hint"),
    [
        ({"pin": "0,6-9"}, "no CPU 8-9 that is online", "--cpu-pin 0-2,4"),
        ({"pin": "0,6"}, "does not let Cerne use the CPU 6", "--cpu-pin 0-2,4"),
        ({"numa_node": 2}, "no NUMA node 2 with memory", "0,3"),
        ({"numa_node": 1}, "does not let Cerne use the memory of the NUMA node 1", "node 0,3"),
        ({"numa_node": 3}, "node 3 has no CPU that Cerne may use", "--cpu-pin 0-2,4"),
    ],
)
def test_what_the_host_has_not_is_refused(
    asked: dict[str, object], said: str, hint: str, host: Topology
) -> None:
    with pytest.raises(CapacityError, match=said) as caught:
        placement_of(CpuResources.model_validate(asked), host)
    assert hint in caught.value.hint


def test_a_host_without_numa_has_one_node(tmp_path: Path) -> None:
    found = topology(tmp_path, tmp_path / "status")
    assert found.online == found.allowed == os.sched_getaffinity(0)
    assert [node.number for node in found.nodes] == [0]
    assert placement_finding().value.startswith("CPUs ")


def test_threads_are_pinned_where_there_is_no_cpuset() -> None:
    first = min(os.sched_getaffinity(0))
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        pin_processes([process.pid, 1 << 22], frozenset({first}))
        assert os.sched_getaffinity(process.pid) == {first}
        process.kill()
