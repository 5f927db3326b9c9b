"""The system calls of the walls, which the standard library does not have.

prctl(2), unshare(2), mount(2), pivot_root(2), capset(2), seccomp(2), landlock(7), with the kernel's
own numbers and structures.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from enum import IntEnum, IntFlag

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Prctl(IntEnum):
    """Options of prctl(2)."""

    PDEATHSIG = 1
    SET_DUMPABLE = 4
    SET_KEEPCAPS = 8
    CAPBSET_DROP = 24
    SET_NO_NEW_PRIVS = 38
    CAP_AMBIENT = 47


class Namespace(IntFlag):
    """Flags of unshare(2)."""

    MOUNT = 0x0002_0000
    UTS = 0x0400_0000
    IPC = 0x0800_0000
    USER = 0x1000_0000
    NET = 0x4000_0000


class Mount(IntFlag):
    """Flags of mount(2)."""

    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    RECURSIVE = 16384
    PRIVATE = 1 << 18


_SYS_PIVOT_ROOT, _SYS_CAPSET, _SYS_SECCOMP = 155, 126, 317
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_RESTRICT_SELF = 444, 446
_CAPABILITY_VERSION_3 = 0x2008_0522
_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63
_DETACH = 2
_SET_FILTER = 1
_LANDLOCK_VERSION = 1
# The rights of struct landlock_ruleset_attr, by the first version of Landlock that has them.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_RIGHTS = {4: 0b11}
_SCOPES = {6: 0b11}
_RULESET = struct.Struct("<QQQ")


def prctl(option: Prctl, value: int = 0) -> None:
    """Call prctl(2) with one value; raises OSError."""
    _check(_libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))))


def unshare(namespaces: Namespace) -> None:
    """Leave these namespaces for new ones; raises OSError."""
    _check(_libc.unshare(int(namespaces)))


def mount(source: str, target: str, kind: str, flags: Mount, options: str = "") -> None:
    """Call mount(2); raises OSError."""
    texts = (os.fsencode(text) for text in (source, target, kind))
    _check(_libc.mount(*texts, ctypes.c_ulong(flags), options.encode()))


def replace_root(root: str) -> None:
    """Make this mount the root of all paths, and give up the former root; raises OSError."""
    os.chdir(root)
    # The former root is put on top of the present one, and unmounted there (pivot_root(2)).
    _check(_libc.syscall(ctypes.c_long(_SYS_PIVOT_ROOT), b".", b"."))
    _check(_libc.umount2(b".", _DETACH))
    os.chdir("/")


def drop_bounding_set() -> None:
    """Empty the ambient and the bounding set of capabilities; raises OSError."""
    _check(_libc.prctl(Prctl.CAP_AMBIENT, *map(ctypes.c_ulong, (_AMBIENT_CLEAR_ALL, 0, 0, 0))))
    for capability in range(_LAST_CAPABILITY + 1):
        try:
            prctl(Prctl.CAPBSET_DROP, capability)
        except OSError as error:
            # The kernel knows no higher ones.
            if error.errno == errno.EINVAL:
                return
            raise


def drop_capabilities() -> None:
    """Empty the permitted, the effective and the inheritable set; raises OSError."""
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.syscall(ctypes.c_long(_SYS_CAPSET), header, bytes(24)))


def set_filter(program: bytes) -> None:
    """Filter all later system calls of this thread by a BPF program; raises OSError."""
    instructions = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    number, operation = ctypes.c_long(_SYS_SECCOMP), ctypes.c_long(_SET_FILTER)
    _check(_libc.syscall(number, operation, ctypes.c_long(0), fprog))


def landlock_version() -> int:
    """The version of the host's Landlock; raises OSError if there is none."""
    number = ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET)
    zero, flags = ctypes.c_long(0), ctypes.c_long(_LANDLOCK_VERSION)
    return _check(_libc.syscall(number, zero, zero, flags))


def deny_by_landlock() -> None:
    """Deny this thread all paths, all TCP, and signals and abstract sockets of other domains.

    It denies as much of this as the host's Landlock knows; raises OSError if there is none.
    """
    version = landlock_version()
    attributes = _RULESET.pack(
        *(
            sum(rights for first, rights in table.items() if first <= version)
            for table in (_FILE_RIGHTS, _NET_RIGHTS, _SCOPES)
        )
    )
    number, size = ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET), ctypes.c_long(len(attributes))
    ruleset = _check(_libc.syscall(number, attributes, size, ctypes.c_long(0)))
    try:
        number = ctypes.c_long(_SYS_LANDLOCK_RESTRICT_SELF)
        _check(_libc.syscall(number, ctypes.c_long(ruleset), ctypes.c_long(0)))
    finally:
        os.close(ruleset)


def _check(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return answer
