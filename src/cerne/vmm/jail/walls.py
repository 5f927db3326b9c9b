"""Puts up the walls around a process of a machine, before a guest runs.

The process has opened all files that it needs, or gets them later over its sockets. Each wall
stands alone: if one has a hole, the others still hold. A wall that this host lacks is named, and
the others are put up without it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import threading
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from cerne.errors import HostError
from cerne.vmm.jail import system
from cerne.vmm.jail.bpf import Rule, fail, program
from cerne.vmm.jail.system import LACKING, MOST_DESCRIPTORS, MOST_THREADS, Mount, Namespace, Prctl

NOBODY = 65534
"""The user of a machine's process that has no user id of its own."""

_OWNER_ALONE = 0o077
_MOUNT_POINT = "/tmp"
_MIB = 1 << 20
_NAMESPACES = Namespace.MOUNT | Namespace.NET | Namespace.IPC | Namespace.UTS
_MORE_MEMORY = 1024 * _MIB


class Wall(StrEnum):
    """One wall, in the order in which they are put up."""

    LIMITS = "limits"
    """Limits of descriptors, threads and memory (setrlimit(2)); no core dump."""
    NAMESPACES = "namespaces"
    """Own mount, network, IPC and UTS namespaces; for a process without root a user one too."""
    ROOT = "root"
    """No path leads to a file of the host."""
    USER = "user"
    """A user id that no other machine's processes have (for root)."""
    CAPABILITIES = "capabilities"
    """No capability in any set."""
    NO_NEW_PRIVILEGES = "no-new-privileges"
    """No program gives more privileges (prctl(2), PR_SET_NO_NEW_PRIVS)."""
    NO_DUMP = "no-dump"
    """Processes of the same user do not read its memory, and a crash does not write it."""
    LANDLOCK = "landlock"
    """No path and no TCP; no signal and no abstract socket beyond this machine (landlock(7))."""
    SECCOMP = "seccomp"
    """Only the listed system calls (seccomp(2))."""


ALL = frozenset(Wall)


class Confinement(NamedTuple):
    """What confines a process."""

    user: int | None
    """Its user and group id, if it is root; None for nobody."""
    calls: Sequence[Rule]
    """Its system calls; any other fails with EPERM."""
    threads: int = MOST_THREADS
    """The most threads of its user."""
    walls: frozenset[Wall] = ALL
    """Tests leave some out."""


class Walls(NamedTuple):
    """The walls around a process."""

    up: tuple[Wall, ...]
    missing: dict[Wall, str]
    """Those that this host lacks, and what it answered."""


def enter(confinement: Confinement) -> Walls:
    """Confine this process for ever; it must have only one thread.

    Raises:
        HostError: a wall that each host has was refused, or there is another thread.
    """
    # The kernel's own threads for KVM do not count.
    if threading.active_count() != 1:
        raise HostError("confining the process failed: it has more than one thread")
    os.umask(_OWNER_ALONE)
    root = os.geteuid() == 0
    up: list[Wall] = []
    missing: dict[Wall, str] = {}
    steps: dict[Wall, Callable[[], None]] = {
        Wall.LIMITS: lambda: _limit(confinement.threads),
        Wall.NAMESPACES: _leave_namespaces,
        Wall.ROOT: lambda: _empty_root(up),
        Wall.USER: lambda: _become(confinement.user) if root else None,
        Wall.CAPABILITIES: lambda: _drop_capabilities(root),
        Wall.NO_NEW_PRIVILEGES: lambda: system.prctl(Prctl.SET_NO_NEW_PRIVS, 1),
        Wall.NO_DUMP: lambda: system.prctl(Prctl.SET_DUMPABLE, 0),
        Wall.LANDLOCK: system.deny_by_landlock,
        Wall.SECCOMP: lambda: system.set_filter(program(confinement.calls, fail(errno.EPERM))),
    }
    for wall, put_up in steps.items():
        if wall not in confinement.walls:
            continue
        try:
            put_up()
        except OSError as error:
            if wall not in _OPTIONAL or error.errno not in LACKING:
                raise HostError(f"confining the process failed ({wall}): {error}") from error
            missing[wall] = error.strerror or str(error)
        else:
            up.append(wall)
    return Walls(tuple(up), missing)


_OPTIONAL = (Wall.NAMESPACES, Wall.ROOT, Wall.LANDLOCK, Wall.SECCOMP)


def _limit(threads: int) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: MOST_DESCRIPTORS,
        resource.RLIMIT_NPROC: threads,
        resource.RLIMIT_DATA: _private_memory() + _MORE_MEMORY,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, most in limits.items():
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))


def _private_memory() -> int:
    """Bytes that RLIMIT_DATA counts at present, the guest's memory with them."""
    with os.fdopen(os.open("/proc/self/status", os.O_RDONLY), "rb") as status:
        for line in status:
            if line.startswith(b"VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def _leave_namespaces() -> None:
    if os.geteuid() == 0:
        system.unshare(_NAMESPACES)
        return
    user, group = os.geteuid(), os.getegid()
    system.unshare(_NAMESPACES | Namespace.USER)
    # The process keeps its ids, and has no others to change to.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        file = os.open(f"/proc/self/{name}", os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)


def _empty_root(up: Iterable[Wall]) -> None:
    """Make an empty file system the root, in which nothing can be made."""
    if Wall.NAMESPACES not in up:
        raise OSError(errno.EPERM, "it needs a mount namespace")
    system.mount("none", "/", "", Mount.PRIVATE | Mount.RECURSIVE)
    flags = Mount.NOSUID | Mount.NODEV | Mount.NOEXEC | Mount.READ_ONLY
    system.mount("none", _MOUNT_POINT, "tmpfs", flags, "size=4k,nr_inodes=2,mode=0555")
    system.replace_root(_MOUNT_POINT)


def _become(user: int | None) -> None:
    number = NOBODY if user is None else user
    with contextlib.suppress(OSError):
        # It stays in the bounding set only if this process may not change that.
        system.drop_bounding_set()
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)


def _drop_capabilities(root: bool) -> None:
    if not root:
        with contextlib.suppress(OSError):
            system.drop_bounding_set()
    system.set_capabilities(frozenset())
