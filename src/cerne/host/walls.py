"""Which walls this host has for processes of machines, and what it lacks (docs/isolation.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cerne.host.finding import Finding, read_text
from cerne.host.user_ids import RANGE_VARIABLE, has_range

_COMPLETE_LANDLOCK = 6
"""The first version that denies signals and abstract sockets."""
_NAMESPACES = ("mnt", "net", "ipc", "uts")


def walls_finding(root: Path = Path("/")) -> Finding:
    """The walls as a line of the doctor's report; `root` is the directory to read from."""
    missing = [*_missing(root)]
    if not missing:
        return Finding("isolation", "all walls are there", True)
    names, advice = zip(*missing, strict=True)
    return Finding("isolation", f"without {', '.join(names)}", False, "; ".join(advice))


def _missing(root: Path) -> Iterator[tuple[str, str]]:
    """The missing walls, each with what to do."""
    is_root = os.geteuid() == 0
    if not is_root:
        yield "a user id for each machine", "run Cerne as root, so that machines get user ids"
    elif not has_range(root):
        yield "a user id for each machine", f"set a range of this user namespace: {RANGE_VARIABLE}"
    if not _has_namespaces(root, is_root):
        yield "namespaces", "allow them: see user_namespaces(7) and sysctl user"
    if "errno" not in read_text(root / "proc/sys/kernel/seccomp/actions_avail").split():
        yield "seccomp", "use a kernel with CONFIG_SECCOMP_FILTER"
    if not _maps_owners():
        yield "mounts with other owners", "use Linux 5.12 or later, so that QEMU is not root"
    version = landlock()
    if version < _COMPLETE_LANDLOCK:
        what = f"parts of Landlock (version {version})" if version else "Landlock"
        yield what, "use Linux 6.12 or later with lsm=landlock"


def _has_namespaces(root: Path, is_root: bool) -> bool:
    names = (*_NAMESPACES, *(() if is_root else ("user",)))
    limits = [read_text(root / f"proc/sys/user/max_{name}_namespaces") for name in names]
    if any(limit in ("", "0") for limit in limits):
        return False
    kernel = root / "proc/sys/kernel"
    forbidden = read_text(kernel / "unprivileged_userns_clone") == "0"
    restricted = read_text(kernel / "apparmor_restrict_unprivileged_userns") == "1"
    return is_root or not (forbidden or restricted)


def _maps_owners() -> bool:
    from cerne.vmm.jail.system import has_mount_attributes

    return has_mount_attributes()


def landlock() -> int:
    """The version of this kernel's Landlock, or 0."""
    from cerne.vmm.jail.system import landlock_version

    try:
        return landlock_version()
    except OSError:
        return 0
