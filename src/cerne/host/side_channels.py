"""Side channels of this host's processor: what is in force against them (docs/side-channels.md).

From Documentation/admin-guide/hw-vuln of Linux: SMT, core scheduling, the state of each known
vulnerability, and KVM's own parameters; and whether the host merges equal pages (ksm.rst).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from cerne.errors import HostError
from cerne.host.finding import Finding, read_text

_SMT = "sys/devices/system/cpu/smt/active"
_VULNERABLE = "Vulnerable"
_PARAMETERS = (
    "kvm/parameters/nx_huge_pages",
    "kvm_intel/parameters/vmentry_l1d_flush",
    "kvm/parameters/mitigate_smt_rsb",
)
_SMT_OFF = "echo off >/sys/devices/system/cpu/smt/control"


def side_channel_findings(root: Path = Path("/")) -> Iterator[Finding]:
    """What is in force, as lines of the doctor's report."""
    yield _cores(root)
    yield _vulnerabilities(root)
    if parameters := ", ".join(_parameters(root)):
        yield Finding("KVM mitigations", parameters)
    if read_text(root / "sys/kernel/mm/ksm/run") == "1":
        yield Finding(
            "equal pages",
            "the host merges equal pages (KSM); those of machines with --memory-merge",
        )


def require_own_cores(root: Path = Path("/")) -> None:
    """Refuse strict isolation if machines would share the threads of a core.

    Raises:
        HostError: cores have several threads, and the kernel does not have core scheduling.
    """
    if has_smt(root) and not _has_core_scheduling():
        raise HostError(
            "this host does not have strict isolation: its cores have several threads (SMT), and"
            " its kernel has no core scheduling",
            hint=f"turn SMT off: {_SMT_OFF}; or use Linux 5.14 or later with CONFIG_SCHED_CORE",
        )


def has_smt(root: Path = Path("/")) -> bool:
    """Whether cores of this host have several threads in use."""
    return read_text(root / _SMT) == "1"


def _cores(root: Path) -> Finding:
    if not has_smt(root):
        return Finding(
            "core threads", "no core has several threads (SMT) that machines could share", True
        )
    if _has_core_scheduling():
        return Finding(
            "core threads", "SMT; machines with --isolation strict share no core's threads", True
        )
    return Finding(
        "core threads",
        "SMT, and no core scheduling: machines share the threads of cores",
        False,
        f"turn SMT off: {_SMT_OFF}; or use Linux 5.14 or later with CONFIG_SCHED_CORE",
    )


def _vulnerabilities(root: Path) -> Finding:
    directory = root / "sys/devices/system/cpu/vulnerabilities"
    if not directory.is_dir():
        return Finding(
            "vulnerabilities", "the kernel does not list the processor's vulnerabilities"
        )
    states = {file.name: read_text(file) for file in sorted(directory.iterdir())}
    # "BHI: Vulnerable" is a part of the state of spectre_v2.
    open_ = [name for name, state in states.items() if _VULNERABLE in state]
    mitigated = [name for name, state in states.items() if "Mitigation" in state]
    found = f"{len(states)} vulnerabilities are known: {len(mitigated)} mitigated"
    if not open_:
        return Finding("vulnerabilities", f"{found}, none open", True)
    return Finding(
        "vulnerabilities",
        f"{found}, open in whole or in part: {', '.join(open_)}",
        False,
        f"see {directory}, and update the kernel and the processor's microcode",
    )


def _parameters(root: Path) -> Iterator[str]:
    for name in _PARAMETERS:
        if value := read_text(root / "sys/module" / name):
            yield f"{name.rpartition('/')[2]}={value}"


def _has_core_scheduling() -> bool:
    from cerne.vmm.jail.system import core_cookie

    try:
        core_cookie()
    except OSError as error:
        # Another error than these is not about the kernel.
        return error.errno not in (errno.EINVAL, errno.ENODEV, errno.ENOSYS)
    return True
