"""The doctor's report: what this host can do for virtual machines, and what to improve."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cerne.errors import HostError
from cerne.host.cell import cell_finding
from cerne.host.finding import Finding
from cerne.host.hypervisor import kvm_findings, virtualization_finding
from cerne.host.kernel import kernel_findings
from cerne.host.own_ids import require_own_ids
from cerne.host.placement import placement_finding
from cerne.host.probe import GuestSpeed, cached_guest_speed
from cerne.host.programs import find_program, install_command
from cerne.host.side_channels import side_channel_findings
from cerne.host.supply import supply_findings
from cerne.host.walls import walls_finding

_QEMU = "qemu-system-x86_64"
_QEMU_TIMEOUT = 20

_PROGRAMS = {
    "qemu-img": "Cerne does not import images without it",
    "mmdebstrap": "Cerne does not build Debian images without it",
    "passt": "guests on a user-mode network reach all services of this host without it, and the"
    " engine native has no such network",
    "musl-gcc": "Cerne does not build the guest agent without it, which images need",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which engine ``auto`` takes on this host, and why."""

    engine: str | None
    """``native``, ``qemu``, or None where no machine can run."""
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about a host."""

    findings: tuple[Finding, ...]
    speed: GuestSpeed | None
    verdict: Verdict
    capabilities: Mapping[str, Mapping[str, bool]]
    """What each engine can do here, by the engine's name and the capability's."""

    @property
    def able(self) -> bool:
        """Whether this host can run a machine."""
        return self.verdict.engine is not None

    def as_json(self) -> dict[str, object]:
        """The report in plain types."""
        return {
            "able": self.able,
            "engine": self.verdict.engine,
            "why": self.verdict.why,
            "guest_speed": None if self.speed is None else asdict(self.speed),
            "capabilities": {name: {**each} for name, each in self.capabilities.items()},
            "findings": [asdict(finding) for finding in self.findings],
        }


def make_report(
    cache: Path,
    auto: str,
    capabilities: Mapping[str, Mapping[str, bool]],
    others: Sequence[Finding] = (),
) -> Report:
    """Examine this host; this takes about a second.

    `cache` is the file for measured speeds, `auto` the engine that ``auto`` takes, `capabilities`
    what each engine can do here, and `others` what else was found.
    """
    speed = cached_guest_speed(cache)
    verdict = judge(auto, speed, has_qemu=find_program(_QEMU) is not None)
    findings = (
        *kvm_findings(speed),
        virtualization_finding(),
        *qemu_findings(),
        *supply_findings(),
        placement_finding(),
        *program_findings(),
        *own_ids_findings(),
        *kernel_findings(),
        walls_finding(),
        *side_channel_findings(),
        cell_finding(),
        *others,
        *(capability_finding(name, can) for name, can in capabilities.items()),
        engine_finding(verdict),
    )
    return Report(findings, speed, verdict, capabilities)


_ABILITIES = {
    "fork": ("forks machines by saving them", "forks machines while they run"),
    "force_unplug": ("takes out devices if the guest agrees", "takes out devices by force"),
    "firmware": ("boots kernels alone", "boots by firmware"),
    "vsock": ("has no vsock", "has vsock"),
}
"""What an engine does that lacks a capability, and that has it."""


def judge(auto: str, speed: GuestSpeed | None, *, has_qemu: bool) -> Verdict:
    """The engine that ``auto`` takes and why, given KVM's speed (None without KVM)."""
    if speed is None:
        why = "this host has no usable KVM"
    elif speed.ring0_native:
        why = "KVM runs the guest's kernel at hardware speed"
    else:
        why = "KVM emulates the guest's kernel"
    if auto != "qemu":
        return Verdict(auto, why)
    if not has_qemu:
        return Verdict(None, f"{why}, but QEMU is not installed")
    fast = speed is not None and speed.ring0_native
    return Verdict("qemu", f"{why}, so QEMU runs machines by {'KVM' if fast else 'TCG'}")


def engine_finding(verdict: Verdict) -> Finding:
    """The verdict as a line of the report."""
    if verdict.engine is None:
        return Finding("engine", verdict.why, False, install_command(_QEMU))
    return Finding("engine", f"{verdict.engine}: {verdict.why}", True)


def capability_finding(engine: str, capabilities: Mapping[str, bool]) -> Finding:
    """What an engine can do here, as a line of the report."""
    words = [_ABILITIES[name][able] for name, able in capabilities.items() if name in _ABILITIES]
    return Finding(f"{engine} engine", ", ".join(words))


def qemu_findings() -> Iterator[Finding]:
    """QEMU's version, and whether it has TCG."""
    path = find_program(_QEMU)
    if path is None:
        yield Finding("QEMU", "not installed", False, install_command(_QEMU))
        return
    version = _output(path, "--version").partition("\n")[0]
    if not version:
        yield Finding("QEMU", f"{path} does not run", False, f"see its error: {path} --version")
        return
    yield Finding("QEMU", version.removeprefix("QEMU emulator version "), True)
    if "tcg" in _output(path, "-accel", "help").split():
        yield Finding("TCG", "in QEMU", True)
    else:
        yield Finding("TCG", "not in this QEMU", False, "install a QEMU that is built with TCG")


def program_findings() -> Iterator[Finding]:
    """The other programs that Cerne uses, and what Cerne does not do without them."""
    for name, without in _PROGRAMS.items():
        path = find_program(name)
        if path is None:
            yield Finding(name, "not installed", False, f"{without}: {install_command(name)}")
        else:
            yield Finding(name, str(path), True)


def own_ids_findings() -> Iterator[Finding]:
    """Whether a user without root can build Debian images."""
    if os.geteuid() == 0:
        return
    try:
        require_own_ids("a Debian image")
    except HostError as error:
        yield Finding("user ids", error.message, False, error.hint)
    else:
        yield Finding("user ids", "this user has ids of its own", True)


def _output(program: Path, *arguments: str) -> str:
    """The output of a program; empty if it fails."""
    try:
        ran = subprocess.run(
            (program, *arguments),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_QEMU_TIMEOUT,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout
