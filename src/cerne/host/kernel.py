"""Other features of this host for virtual machines, read from /proc and /sys.

Every function takes the root directory to read from, `/` on a real host.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cerne.host.finding import Finding, read_text
from cerne.units import KIB, MIB, counted, format_size

_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")
_ENOUGH_MEMORY = 512 * MIB


def kernel_findings(root: Path = Path("/")) -> Iterator[Finding]:
    """All findings of this module, in the report's order."""
    yield cgroups(root)
    yield transparent_huge_pages(root)
    yield reserved_huge_pages(root)
    yield device(root, "tun", "dev/net/tun", "machines have only user-mode networking", "tun")
    yield device(root, "vhost-net", "dev/vhost-net", "network is slower", "vhost_net")
    yield device(root, "vhost-vsock", "dev/vhost-vsock", "there are no vsock ports", "vhost_vsock")
    yield iommu(root)
    yield smt(root)
    yield memory(root)
    yield processors(root)
    yield numa(root)


def cgroups(root: Path) -> Finding:
    """The version of cgroups and its controllers, which limit and guarantee resources."""
    unified = root / "sys/fs/cgroup/cgroup.controllers"
    if unified.exists():
        found = read_text(unified).split()
        missing = [name for name in _CONTROLLERS if name not in found]
        value = f"version 2: {', '.join(found) or 'no controllers'}"
        if not missing:
            return Finding("cgroups", value, True)
        return Finding("cgroups", value, False, f"turn on {', '.join(missing)} in this cgroup")
    lines = read_text(root / "proc/self/cgroup").splitlines()
    hierarchies = [line.split(":")[1] for line in lines if line.count(":") >= 2]
    # A hierarchy without a controller has a name instead: name=systemd.
    controllers = sorted(
        name for names in hierarchies for name in names.split(",") if name.isidentifier()
    )
    if not controllers:
        return Finding("cgroups", "none", False, "mount them: see cgroups(7)")
    return Finding(
        "cgroups",
        f"version 1: {', '.join(controllers)}",
        False,
        "boot with systemd.unified_cgroup_hierarchy=1 for version 2, "
        "which limits disk and memory better",
    )


def transparent_huge_pages(root: Path) -> Finding:
    """Whether processes get huge pages at their request, which makes guests faster."""
    modes = read_text(root / "sys/kernel/mm/transparent_hugepage/enabled")
    mode = modes.partition("[")[2].partition("]")[0] or "none"
    if mode in ("always", "madvise"):
        return Finding("transparent huge pages", mode, True)
    return Finding(
        "transparent huge pages",
        mode,
        False,
        "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def reserved_huge_pages(root: Path) -> Finding:
    """The reserved huge pages; Cerne does not need them."""
    pools = sorted((root / "sys/kernel/mm/hugepages").glob("hugepages-*kB"))
    counts = {
        int(pool.name.removeprefix("hugepages-").removesuffix("kB")): int(
            read_text(pool / "nr_hugepages") or 0
        )
        for pool in pools
    }
    kept = [f"{count} of {format_size(size * KIB)}" for size, count in counts.items() if count]
    return Finding("reserved huge pages", ", ".join(kept) or "none")


def device(root: Path, topic: str, path: str, without: str, module: str) -> Finding:
    """Whether a device is there and open to this user, and what does not work without it."""
    node = root / path
    if not node.exists():
        advice = f"{without}: sudo modprobe {module}"
        return Finding(topic, f"there is no /{path}", False, advice)
    if not os.access(node, os.R_OK | os.W_OK):
        user = os.environ.get("USER", "$USER")
        advice = f"{without}: sudo setfacl -m u:{user}:rw /{path}"
        return Finding(topic, f"/{path} is not open to this user", False, advice)
    return Finding(topic, f"/{path} is open to this user", True)


def iommu(root: Path) -> Finding:
    """Whether this host can pass its devices through to a guest."""
    groups = root / "sys/kernel/iommu_groups"
    count = len(list(groups.iterdir())) if groups.is_dir() else 0
    if count == 0:
        return Finding(
            "IOMMU",
            "off: this host passes no device through to a guest",
            advice="to use passthrough, turn on VT-d or AMD-Vi in the firmware and "
            "boot with intel_iommu=on or amd_iommu=on",
        )
    if not (root / "dev/vfio/vfio").exists():
        value = f"{count} groups, without VFIO"
        return Finding("IOMMU", value, False, "sudo modprobe vfio-pci")
    return Finding("IOMMU", f"{count} groups, with VFIO", True)


def smt(root: Path) -> Finding:
    """Whether two threads share a core, which lets one guest observe another."""
    active = read_text(root / "sys/devices/system/cpu/smt/active")
    if active != "1":
        return Finding("SMT", "off")
    return Finding(
        "SMT",
        "on",
        advice="guests that must not observe each other need separate cores, or: "
        "echo off | sudo tee /sys/devices/system/cpu/smt/control",
    )


def memory(root: Path) -> Finding:
    """How much memory the host has, and how much is available."""
    sizes = {}
    for line in read_text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        sizes[name] = int(value.split()[0]) * KIB
    available, total = sizes.get("MemAvailable", 0), sizes.get("MemTotal", 0)
    value = f"{format_size(available)} of {format_size(total)} available"
    if available >= _ENOUGH_MEMORY:
        return Finding("memory", value, True)
    return Finding("memory", value, False, "stop something, or give machines less: --memory 128M")


def processors(root: Path) -> Finding:
    """How many processors this process may use, and what they are."""
    lines = read_text(root / "proc/cpuinfo").splitlines()
    models = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return Finding("processors", f"{len(os.sched_getaffinity(0))}, {', '.join(sorted(models))}")


def numa(root: Path) -> Finding:
    """How many memory nodes there are."""
    nodes = len(list((root / "sys/devices/system/node").glob("node[0-9]*")))
    return Finding("NUMA", counted(max(1, nodes), "node"))
