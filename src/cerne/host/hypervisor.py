"""This host's KVM: whether it is there, whether it has what Cerne needs, and its speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cerne.errors import HostError
from cerne.host.finding import Finding, read_text
from cerne.host.probe import KVM_DEVICE, GuestSpeed
from cerne.kvm.abi import Capability
from cerne.kvm.kvm import Kvm

USED_CAPABILITIES = (
    Capability.IRQCHIP,
    Capability.USER_MEMORY,
    Capability.EXT_CPUID,
    Capability.MP_STATE,
    Capability.IRQ_ROUTING,
    Capability.IRQFD,
    Capability.PIT2,
    Capability.REINJECT_CONTROL,
    Capability.PIT_STATE2,
    Capability.IOEVENTFD,
    Capability.ADJUST_CLOCK,
    Capability.VCPU_EVENTS,
    Capability.DEBUGREGS,
    Capability.XSAVE,
    Capability.XCRS,
    Capability.GET_TSC_KHZ,
    Capability.SIGNAL_MSI,
    Capability.IMMEDIATE_EXIT,
    Capability.BINARY_STATS_FD,
)
"""The capabilities that the native engine needs from the kernel."""


def kvm_findings(speed: GuestSpeed | None, device: Path = KVM_DEVICE) -> Iterator[Finding]:
    """Whether /dev/kvm opens, what it offers, and how fast it runs a guest."""
    try:
        kvm = Kvm(device)
    except HostError as error:
        yield Finding("KVM", error.message, False, error.hint)
        return
    with kvm:
        yield Finding("KVM", f"{device} is open to this user", True)
        yield Finding("KVM API", f"version {kvm.get_api_version()}", True)
        yield _capabilities(kvm)
    if speed is None:
        yield Finding(
            "guest speed",
            f"{device} runs no guest",
            False,
            "read the kernel's log: sudo dmesg | grep -i kvm",
        )
        return
    yield _ring3(speed)
    yield _ring0(speed)


def virtualization_finding(root: Path = Path("/")) -> Finding:
    """Whether this host is a virtual machine, and which module provides its KVM."""
    modules = sorted(
        path.name for path in (root / "sys/module").glob("kvm_*") if path.name != "kvm_arch"
    )
    served = f"; KVM by {', '.join(modules)}" if modules else ""
    if " hypervisor" not in read_text(root / "proc/cpuinfo"):
        return Finding("host", f"bare metal{served}", True)
    vendor = read_text(root / "sys/class/dmi/id/sys_vendor") or "no vendor named"
    nested = "; KVM is nested" if (root / "dev/kvm").exists() else ""
    return Finding("host", f"a virtual machine ({vendor}){nested}{served}")


def _capabilities(kvm: Kvm) -> Finding:
    missing = [one.name for one in USED_CAPABILITIES if not kvm.check_extension(one)]
    if not missing:
        return Finding("KVM capabilities", f"all {len(USED_CAPABILITIES)} that Cerne uses", True)
    return Finding(
        "KVM capabilities",
        f"{', '.join(missing)} of {len(USED_CAPABILITIES)} are missing",
        False,
        "the native engine needs Linux 5.14 or newer: upgrade the kernel",
    )


def _ring3(speed: GuestSpeed) -> Finding:
    value = f"{_millions(speed.ring3_per_second)} instructions a second"
    if speed.ring3_native:
        return Finding("guest programs", f"{value} (ring 3)", True)
    return Finding(
        "guest programs",
        f"{value} (ring 3): they are emulated",
        False,
        "machines run faster on a host with VT-x or AMD-V",
    )


def _ring0(speed: GuestSpeed) -> Finding:
    value = f"{_millions(speed.ring0_per_second)} instructions a second"
    if speed.ring0_native:
        return Finding("guest kernel", f"{value} (ring 0)", True)
    return Finding(
        "guest kernel",
        f"{value} (ring 0): it is emulated",
        False,
        "this KVM has no hardware under it, so guests boot by QEMU's TCG instead; "
        "for speed use bare metal, or a virtual machine with nested VT-x or AMD-V",
    )


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f} million" if number < 10_000_000 else f"{number / 1e6:,.0f} million"
