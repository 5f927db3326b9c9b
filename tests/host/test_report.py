"""The doctor's report, on made-up hosts and on this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cerne.host import kernel, report
from cerne.host.hypervisor import kvm_findings, virtualization_finding
from cerne.host.probe import NATIVE_SPEED, GuestSpeed
from cerne.host.report import Report, Verdict, engine_finding, judge, make_report

NATIVE = GuestSpeed(NATIVE_SPEED, NATIVE_SPEED)
EMULATED = GuestSpeed(NATIVE_SPEED, 1_700_000)

_CAN = {"native": {"fork": True, "firmware": False}, "qemu": {"fork": False, "firmware": True}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a made-up host on which nothing is."""
    return tmp_path


def put(root: Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    ("auto", "speed", "has_qemu", "engine", "why"),
    [
        ("native", NATIVE, True, "native", "hardware"),
        ("native", NATIVE, False, "native", "hardware"),
        ("qemu", NATIVE, True, "qemu", "by KVM"),
        ("qemu", NATIVE, False, None, "not installed"),
        ("qemu", EMULATED, True, "qemu", "emulates"),
        ("qemu", EMULATED, False, None, "not installed"),
        ("qemu", None, True, "qemu", "by TCG"),
        ("qemu", None, False, None, "not installed"),
    ],
)
def test_the_verdict_says_why(
    auto: str, speed: GuestSpeed | None, has_qemu: bool, engine: str | None, why: str
) -> None:
    verdict = judge(auto, speed, has_qemu=has_qemu)
    assert verdict.engine == engine
    assert why in verdict.why
    finding = engine_finding(verdict)
    assert finding.good is (engine is not None)
    assert bool(finding.advice) is (engine is None)
    assert Report((finding,), speed, verdict, {}).able is (engine is not None)


def test_all_that_is_not_good_says_what_to_do(tmp_path: Path, root: Path) -> None:
    here = make_report(tmp_path / "speed.json", "qemu", _CAN).findings
    nothing = (*kernel.kernel_findings(root), *kvm_findings(None, root / "dev/kvm"))
    for finding in (*here, *nothing):
        assert finding.topic
        assert finding.value
        assert finding.advice or finding.good is not False


def test_the_report_is_plain_for_programs(tmp_path: Path) -> None:
    made = make_report(tmp_path / "speed.json", "qemu", _CAN)
    told = json.loads(json.dumps(made.as_json()))
    assert told["able"] is made.able
    assert told["engine"] == made.verdict.engine
    assert len(told["findings"]) == len(made.findings)
    assert told["capabilities"] == _CAN
    values = {finding["topic"]: finding["value"] for finding in told["findings"]}
    assert values["qemu engine"] == "forks machines by saving them, boots by firmware"
    topics = [finding["topic"] for finding in told["findings"]]
    assert len(set(topics)) == len(topics)


def test_an_emulated_kernel_is_named(kvm_device: Path) -> None:
    findings = {finding.topic: finding for finding in kvm_findings(EMULATED, kvm_device)}
    assert findings["guest programs"].good is True
    assert findings["guest kernel"].good is False
    assert "emulated" in findings["guest kernel"].value
    assert findings["KVM API"].value == "version 12"


def test_a_missing_kvm_is_one_finding(root: Path) -> None:
    (finding,) = kvm_findings(None, root / "dev/kvm")
    assert finding.good is False
    assert finding.advice


def test_a_host_that_is_a_guest_is_told_from_bare_metal(root: Path) -> None:
    put(root, "proc/cpuinfo", "flags : fpu svm\n")
    assert virtualization_finding(root).value == "bare metal"
    put(root, "proc/cpuinfo", "flags : fpu hypervisor\n")
    put(root, "sys/class/dmi/id/sys_vendor", "QEMU\n")
    (root / "sys/module/kvm_amd").mkdir(parents=True)
    value = virtualization_finding(root).value
    assert "QEMU" in value
    assert "kvm_amd" in value


def test_cgroups_of_version_2_are_good_with_all_controllers(root: Path) -> None:
    put(root, "sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    assert kernel.cgroups(root).good is True
    put(root, "sys/fs/cgroup/cgroup.controllers", "memory pids\n")
    finding = kernel.cgroups(root)
    assert finding.good is False
    assert "cpu, cpuset, io" in finding.advice


def test_cgroups_of_version_1_are_told(root: Path) -> None:
    put(root, "proc/self/cgroup", "4:memory:/\n3:cpu,cpuacct:/\n0::/\n")
    assert kernel.cgroups(root).value == "version 1: cpu, cpuacct, memory"
    put(root, "proc/self/cgroup", "0::/\n")
    assert kernel.cgroups(root).value == "none"


@pytest.mark.parametrize(
    ("text", "mode", "good"),
    [
        ("always [madvise] never", "madvise", True),
        ("always madvise [never]", "never", False),
        ("", "none", False),
    ],
)
def test_the_mode_of_huge_pages_is_read(root: Path, text: str, mode: str, good: bool) -> None:
    put(root, "sys/kernel/mm/transparent_hugepage/enabled", text)
    finding = kernel.transparent_huge_pages(root)
    assert (finding.value, finding.good) == (mode, good)


def test_huge_pages_that_are_set_aside_are_counted(root: Path) -> None:
    put(root, "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "16\n")
    put(root, "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n")
    assert kernel.reserved_huge_pages(root).value == "16 of 2M"


def test_devices_are_looked_for(root: Path) -> None:
    missing = kernel.device(root, "tun", "dev/net/tun", "no networks", "tun")
    assert missing.advice == "no networks: sudo modprobe tun"
    put(root, "dev/net/tun")
    assert kernel.device(root, "tun", "dev/net/tun", "no networks", "tun").good is True


def test_an_iommu_is_known_by_its_groups(root: Path) -> None:
    assert kernel.iommu(root).good is None
    (root / "sys/kernel/iommu_groups/0").mkdir(parents=True)
    assert kernel.iommu(root).good is False
    put(root, "dev/vfio/vfio")
    assert kernel.iommu(root).good is True


def test_memory_is_good_where_a_machine_fits(root: Path) -> None:
    put(root, "proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\n")
    assert kernel.memory(root).value == "1G of 2G available"
    assert kernel.memory(root).good is True
    put(root, "proc/meminfo", "MemTotal: 2097152 kB\nMemAvailable: 1024 kB\n")
    assert kernel.memory(root).good is False


def test_smt_and_numa_are_told(root: Path) -> None:
    assert kernel.smt(root).value == "off"
    put(root, "sys/devices/system/cpu/smt/active", "1\n")
    assert kernel.smt(root).advice
    assert kernel.numa(root).value == "1 node"
    for node in ("node0", "node1", "possible"):
        (root / "sys/devices/system/node" / node).mkdir(parents=True)
    assert kernel.numa(root).value == "2 nodes"


def test_programs_that_are_missing_are_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report, "find_program", lambda name: None)
    (qemu,) = report.qemu_findings()
    assert "qemu" in qemu.advice
    assert all("install" in finding.advice for finding in report.program_findings())


def test_a_qemu_that_does_not_run_is_not_good(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "find_program", lambda name: tmp_path / "nothing")
    (qemu,) = report.qemu_findings()
    assert qemu.good is False


def test_no_engine_is_no_machine() -> None:
    assert not Report((), None, Verdict(None, "nothing runs"), {}).able
