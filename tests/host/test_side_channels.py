"""Side channels of a host's processor, by the files of another host."""

from __future__ import annotations

import contextlib
import ctypes
import errno
from pathlib import Path

import pytest

from cerne.errors import HostError
from cerne.host import side_channels
from cerne.host.side_channels import require_own_cores, side_channel_findings
from cerne.vmm.jail import system


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with SMT, of whose known vulnerabilities one is open in part."""
    files = {
        "sys/devices/system/cpu/smt/active": "1",
        "sys/devices/system/cpu/vulnerabilities/l1tf": "Mitigation: PTE Inversion",
        "sys/devices/system/cpu/vulnerabilities/mds": "Not affected",
        "sys/devices/system/cpu/vulnerabilities/spectre_v2": "Mitigation: IBRS; BHI: Vulnerable",
        "sys/module/kvm/parameters/nx_huge_pages": "Y",
        "sys/module/kvm_intel/parameters/vmentry_l1d_flush": "cond",
        "sys/kernel/mm/ksm/run": "1",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    return tmp_path


def _core_scheduling(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def answer() -> int:
        if number:
            raise OSError(number, "")
        return 0

    monkeypatch.setattr(system, "core_cookie", answer)


def test_what_is_in_force(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _core_scheduling(monkeypatch, 0)
    cores, vulnerabilities, kvm, merging = side_channel_findings(host)
    assert cores.good
    assert "--isolation strict" in cores.value
    assert not vulnerabilities.good
    assert "2 mitigated, open in whole or in part: spectre_v2" in vulnerabilities.value
    assert kvm.value == "nx_huge_pages=Y, vmentry_l1d_flush=cond"
    assert "KSM" in merging.value


def test_a_host_without_the_files_has_findings_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _core_scheduling(monkeypatch, errno.EINVAL)
    cores, vulnerabilities = side_channel_findings(tmp_path)
    assert cores.good
    assert "does not list" in vulnerabilities.value
    require_own_cores(tmp_path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS])
def test_strict_isolation_needs_core_scheduling_with_smt(
    host: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _core_scheduling(monkeypatch, 0)
    require_own_cores(host)
    _core_scheduling(monkeypatch, number)
    with pytest.raises(HostError, match="its kernel has no core scheduling") as caught:
        require_own_cores(host)
    assert "smt/control" in caught.value.hint
    (cores, *_) = side_channel_findings(host)
    assert not cores.good
    assert cores.advice == caught.value.hint[0].lower() + caught.value.hint[1:]
    (host / "sys/devices/system/cpu/smt/active").write_text("0\n")
    require_own_cores(host)


def test_this_hosts_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    if not side_channels.has_smt():
        system.take_cores_alone()
    for number, smt, fails in (
        (errno.ENODEV, True, False),
        (errno.EINVAL, False, False),
        (errno.EINVAL, True, True),
    ):
        monkeypatch.setattr(system._libc, "prctl", lambda *_words, number=number: _refuse(number))
        monkeypatch.setattr(system, "_has_smt", lambda smt=smt: smt)
        with pytest.raises(OSError, match="Invalid") if fails else contextlib.nullcontext():
            system.take_cores_alone()


def _refuse(number: int) -> int:
    ctypes.set_errno(number)
    return -1
