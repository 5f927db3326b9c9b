"""What a host has for machines, within the control groups of both versions around a process."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from cerne.errors import CapacityError, HostError
from cerne.host.cgroup import Surface
from cerne.host.supply import (
    Hugepages,
    available_memory,
    hugepages,
    memory_pressure,
    require_hugepages,
    require_merging,
    supplied_cpus,
    supplied_memory,
    supply_findings,
)
from cerne.units import GIB, MIB


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with four CPUs and 8 GiB."""
    sizes = {"SC_PHYS_PAGES": 8 * GIB // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    monkeypatch.setattr("cerne.host.supply.hugepages", tuple)


def _surface(place: Path, memberships: str, files: dict[str, str]) -> Surface:
    own = place / "proc" / str(os.getpid())
    own.mkdir(parents=True)
    (own / "cgroup").write_text(memberships)
    (place / "groups").mkdir()
    for name, text in files.items():
        (place / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "groups" / name).write_text(text)
    return Surface(place / "groups", place / "proc", place / "systemd")


def test_a_host_without_limits_has_all(tmp_path: Path) -> None:
    files = {"a/cpu.max": "max 100000\n", "a/memory.max": "max\n"}
    surface = _surface(tmp_path, "0::/a\n", files)
    assert supplied_cpus(surface) == 4
    assert supplied_memory(surface) == 8 * GIB


def test_the_least_limit_of_all_groups_around_counts_in_v2(tmp_path: Path) -> None:
    files = {
        "a/b/cpu.max": "300000 100000\n",
        "a/b/memory.max": str(4 * GIB),
        "a/cpu.max": "150000 100000\n",
        "a/memory.max": "max\n",
        # Of another group, and of the root, which has no limits.
        "c/cpu.max": "1000 100000\n",
    }
    surface = _surface(tmp_path, "0::/a/b\n", files)
    assert supplied_cpus(surface) == Decimal("1.5")
    assert supplied_memory(surface) == 4 * GIB


def test_limits_are_read_in_v1(tmp_path: Path) -> None:
    files = {
        "cpu/x/cpu.cfs_quota_us": "50000\n",
        "cpu/x/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
        "memory/y/z/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/y/memory.limit_in_bytes": f"{512 * MIB}\n",
    }
    memberships = "3:memory:/y/z\n2:cpu,cpuacct:/x\n1:name=systemd:/\n0::/\n"
    surface = _surface(tmp_path, memberships, files)
    assert supplied_cpus(surface) == Decimal("0.5")
    assert supplied_memory(surface) == 512 * MIB


def test_a_group_that_is_not_visible_or_odd_limits_nothing(tmp_path: Path) -> None:
    files = {"cpu.max": "lots of\n", "memory.max": "\n", "a/cpu.max": "1 0\n"}
    surface = _surface(tmp_path, "0::/elsewhere/of/a/container\n5:odd:/\n", files)
    assert supplied_cpus(surface) == 4
    assert supplied_memory(surface) == 8 * GIB


def test_memory_in_hugepages_is_not_for_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node, total, free in ((0, 512, 500), (1, 0, 0)):
        directory = tmp_path / f"node{node}" / "hugepages" / "hugepages-2048kB"
        directory.mkdir(parents=True)
        (directory / "nr_hugepages").write_text(f"{total}\n")
        (directory / "free_hugepages").write_text(f"{free}\n")
    found = hugepages(tmp_path)
    assert found == (Hugepages(0, 2 * MIB, 512, 500),)
    monkeypatch.setattr("cerne.host.supply.hugepages", lambda: found)
    assert supplied_memory(_surface(tmp_path / "host", "0::/\n", {})) == 7 * GIB


def test_the_doctor_says_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr("cerne.host.supply.supplied_cpus", lambda: Decimal("4.000"))
    monkeypatch.setattr("cerne.host.supply.supplied_memory", lambda: 8 * GIB)
    assert [each.value for each in supply_findings()] == ["4 CPUs, 8G of memory"]
    monkeypatch.setattr("cerne.host.supply.supplied_cpus", lambda: Decimal("1.500"))
    assert [each.value for each in supply_findings()] == [
        "1.5 CPUs, 8G of memory, within limits; this host has 4 CPUs, 8G"
    ]


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        (
            "0::/a\n",
            {
                "a/memory.max": str(2 * GIB),
                "a/memory.current": str(GIB + 512 * MIB),
                "a/memory.stat": f"anon 5\ninactive_file {256 * MIB}\n",
            },
        ),
        (
            "3:memory:/a\n",
            {
                "memory/a/memory.limit_in_bytes": str(2 * GIB),
                "memory/a/memory.usage_in_bytes": str(GIB + 512 * MIB),
                "memory/a/memory.stat": f"inactive_file 1\ntotal_inactive_file {256 * MIB}\n",
            },
        ),
    ],
)
def test_what_is_available_is_within_the_groups_without_files_that_the_kernel_frees(
    tmp_path: Path, membership: str, files: dict[str, str]
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 9 kB\nMemAvailable: {4 * GIB // 1024} kB\n")
    assert available_memory(_surface(tmp_path / "x", "", {}), meminfo) == 4 * GIB
    assert available_memory(_surface(tmp_path / "y", membership, files), meminfo) == 768 * MIB


def test_pressure_is_a_percentage_and_nothing_if_the_kernel_counts_none(tmp_path: Path) -> None:
    file = tmp_path / "memory"
    assert memory_pressure(file) == 0.0
    file.write_text("some avg10=12.50 avg60=3.00 avg300=1.00 total=5\nfull avg10=99.00 total=5\n")
    assert memory_pressure(file) == 12.5
    file.write_text("nothing")
    assert memory_pressure(file) == 0.0


def test_hugepages_that_are_reserved_are_not_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = (Hugepages(0, 2 * MIB, 80, 60), Hugepages(0, GIB, 4, 4))
    reserved = tmp_path / "reserved"
    reserved.write_text("44\n")
    monkeypatch.setattr("cerne.host.supply.hugepages", lambda: pages)
    monkeypatch.setattr("cerne.host.supply._RESERVED_PAGES", reserved)
    require_hugepages("web", 160 * MIB, free=False)
    require_hugepages("web", 32 * MIB, free=True)
    with pytest.raises(CapacityError, match="64M in hugepages, of which 32M are free") as said:
        require_hugepages("web", 64 * MIB, free=True)
    assert "vm.nr_hugepages=96" in said.value.hint
    with pytest.raises(CapacityError, match="of which 160M are set aside"):
        require_hugepages("web", 162 * MIB, free=False)


def test_a_host_merges_memory_only_if_it_was_told_to(tmp_path: Path) -> None:
    file = tmp_path / "run"
    for text in ("", "0\n", "2\n"):
        file.write_text(text)
        with pytest.raises(HostError, match="merges no memory"):
            require_merging(file)
    file.write_text("1\n")
    require_merging(file)
