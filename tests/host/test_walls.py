"""The walls that a host has, and what it lacks, as the doctor tells it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cerne.host.finding import Finding
from cerne.host.walls import walls_finding
from cerne.vmm.jail import system


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a host with all walls, of which this process is root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(system, "landlock_version", lambda: 7)
    files = {f"sys/user/max_{name}_namespaces": "9" for name in ("mnt", "net", "ipc", "uts")}
    files |= {f"self/{name}": "0 0 4294967295" for name in ("uid_map", "gid_map")}
    files["sys/kernel/seccomp/actions_avail"] = "kill_process errno allow"
    for name, text in files.items():
        file = tmp_path / "proc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return tmp_path


def test_a_host_with_all_walls_is_good(host: Path) -> None:
    assert walls_finding(host) == Finding("isolation", "all walls are there", True)


@pytest.mark.parametrize(
    ("name", "text", "missing"),
    [
        ("self/uid_map", "0 100000 65536", "a user id for each machine"),
        ("sys/user/max_net_namespaces", "0", "namespaces"),
        ("sys/kernel/seccomp/actions_avail", "", "seccomp"),
    ],
)
def test_a_missing_wall_is_named(host: Path, name: str, text: str, missing: str) -> None:
    (host / "proc" / name).write_text(text)
    finding = walls_finding(host)
    assert (finding.value, finding.good) == (f"without {missing}", False)
    assert finding.advice


def test_a_kernel_without_mounts_of_other_owners_is_named(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert system.has_mount_attributes()
    monkeypatch.setattr(system, "has_mount_attributes", lambda: False)
    finding = walls_finding(host)
    assert finding.value == "without mounts with other owners"
    assert "5.12" in finding.advice


def test_landlock_is_named_with_its_version(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "landlock_version", lambda: 4)
    assert walls_finding(host).value == "without parts of Landlock (version 4)"

    def absent() -> int:
        raise OSError(errno.EOPNOTSUPP, "")

    monkeypatch.setattr(system, "landlock_version", absent)
    assert walls_finding(host).value == "without Landlock"


def test_a_user_without_root_lacks_user_ids(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (host / "proc/sys/user/max_user_namespaces").write_text("9")
    assert walls_finding(host).value == "without a user id for each machine"
    (host / "proc/sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1")
    assert walls_finding(host).value == "without a user id for each machine, namespaces"
