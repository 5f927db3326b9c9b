"""The system calls of the walls, which the standard library does not have.

prctl(2), unshare(2), mount(2), pivot_root(2), capset(2), seccomp(2), landlock(7), with the kernel's
own numbers and structures.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

SIGKILL = 9
"""As in signal, which imports enum too."""
MOST_DESCRIPTORS = 1 << 16
"""The limit of open files: enough for 256 children at once, and for thousands of sockets."""
MOST_THREADS = 1 << 14
"""The limit of threads of a user: enough for thousands of forks, which have one user."""
# What a kernel answers that lacks a facility, or a container or security module that forbids it.
LACKING = frozenset(
    (
        errno.EPERM,
        errno.EACCES,
        errno.EINVAL,
        errno.ENOSYS,
        errno.ENOSPC,
        errno.EUSERS,
        errno.EOPNOTSUPP,
    )
)
"""Such errors are a lack of the host, not a fault."""


class Prctl:
    """Options of prctl(2)."""

    PDEATHSIG = 1
    SET_DUMPABLE = 4
    SET_KEEPCAPS = 8
    CAPBSET_DROP = 24
    SET_NO_NEW_PRIVS = 38
    CAP_AMBIENT = 47
    SCHED_CORE = 62


class Namespace:
    """Flags of unshare(2)."""

    MOUNT = 0x0002_0000
    UTS = 0x0400_0000
    IPC = 0x0800_0000
    USER = 0x1000_0000
    NET = 0x4000_0000


class Mount:
    """Flags of mount(2)."""

    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    REMOUNT = 32
    BIND = 4096
    RECURSIVE = 16384
    PRIVATE = 1 << 18


class Attribute:
    """Attributes of mount_setattr(2)."""

    READ_ONLY = 1
    NOSUID = 2
    NODEV = 4
    ID_MAP = 1 << 20


_SYS_PIVOT_ROOT, _SYS_CAPSET, _SYS_SECCOMP = 155, 126, 317
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _RECURSIVE = 1, os.O_CLOEXEC, 0x8000
_CURRENT_DIRECTORY, _EMPTY_PATH, _MOVE_FROM_DESCRIPTOR = -100, 0x1000, 4
_AMBIENT_RAISE = 2
_MOUNT_ATTRIBUTES = struct.Struct("<QQQQ")
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_RESTRICT_SELF = 444, 446
_CAPABILITY_VERSION_3 = 0x2008_0522
_AMBIENT_CLEAR_ALL = 4
_LAST_CAPABILITY = 63
_DETACH = 2
_SET_FILTER = 1
_NEW_LISTENER = 8
_ANSWERED_BY_DESCRIPTORS = (5, 9)
"""The first Linux with SECCOMP_IOCTL_NOTIF_ADDFD."""
_LANDLOCK_VERSION = 1
_CORE_GET, _CORE_CREATE = 0, 1
_SMT = "/sys/devices/system/cpu/smt/active"
_ONE_THREAD, _ALL_THREADS = 0, 1
# The rights of struct landlock_ruleset_attr, by the first version of Landlock that has them.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET_RIGHTS = {4: 0b11}
_SCOPES = {6: 0b11}
_RULESET = struct.Struct("<QQQ")


def prctl(option: int, value: int = 0) -> None:
    """Call prctl(2) with one value; raises OSError."""
    _check(_libc.prctl(option, *map(ctypes.c_ulong, (value, 0, 0, 0))))


def unshare(namespaces: int) -> None:
    """Leave these namespaces for new ones; raises OSError."""
    _check(_libc.unshare(int(namespaces)))


def enter(namespace: int, kind: int) -> None:
    """Enter the namespace of an open descriptor (setns(2)); raises OSError.

    Of a network namespace it is this thread that enters it.
    """
    _check(_libc.setns(namespace, int(kind)))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
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


def clone_mount(path: str, attributes: int, *, folder: bool = False, ids: int | None = None) -> int:
    """A descriptor of a file or directory as a private mount without a place; raises OSError.

    The mounts in a `folder` are part of it (open_tree(2), mount_setattr(2)). `ids` is a descriptor
    of the user namespace that maps their owners.
    """
    here = ctypes.c_long(_CURRENT_DIRECTORY)
    recursive = _RECURSIVE if folder else 0
    flags = ctypes.c_long(_OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | recursive)
    tree = _check(_libc.syscall(ctypes.c_long(_SYS_OPEN_TREE), here, os.fsencode(path), flags))
    try:
        if ids is not None:
            attributes |= Attribute.ID_MAP
        wanted = _MOUNT_ATTRIBUTES.pack(attributes, 0, Mount.PRIVATE, ids or 0)
        size, flags = ctypes.c_long(len(wanted)), ctypes.c_long(_EMPTY_PATH | recursive)
        number, file = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_long(tree)
        _check(_libc.syscall(number, file, b"", flags, wanted, size))
    except BaseException:
        os.close(tree)
        raise
    return tree


def has_mount_attributes() -> bool:
    """Whether the kernel knows mount_setattr(2), by which mounts have other owners."""
    number, nowhere, zero = ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_long(-1), ctypes.c_long(0)
    _libc.syscall(number, nowhere, b"", zero, None, zero)
    return ctypes.get_errno() != errno.ENOSYS


def attach_mount(tree: int, target: str) -> None:
    """Give a mount of `clone_mount` its place, and close it (move_mount(2)); raises OSError."""
    try:
        here = ctypes.c_long(_CURRENT_DIRECTORY)
        number, file = ctypes.c_long(_SYS_MOVE_MOUNT), ctypes.c_long(tree)
        flags = ctypes.c_long(_MOVE_FROM_DESCRIPTOR)
        _check(_libc.syscall(number, file, b"", here, os.fsencode(target), flags))
    finally:
        os.close(tree)


def bind(path: str, target: str, attributes: int, *, folder: bool = False) -> None:
    """Mount a file or directory at another path; raises OSError."""
    attach_mount(clone_mount(path, attributes, folder=folder), target)


def set_capabilities(kept: frozenset[int]) -> None:
    """Have only these capabilities, for programs that this process executes too; raises OSError."""
    bits = sum(1 << capability for capability in kept)
    header = struct.pack("<Ii", _CAPABILITY_VERSION_3, 0)
    low, high = bits & 0xFFFF_FFFF, bits >> 32
    data = struct.pack("<IIIIII", low, low, low, high, high, high)
    _check(_libc.syscall(ctypes.c_long(_SYS_CAPSET), header, data))
    for capability in kept:
        words = map(ctypes.c_ulong, (_AMBIENT_RAISE, capability, 0, 0))
        _check(_libc.prctl(Prctl.CAP_AMBIENT, *words))


def drop_bounding_set(kept: frozenset[int] = frozenset()) -> None:
    """Empty the ambient and the bounding set of capabilities, but for some; raises OSError."""
    _check(_libc.prctl(Prctl.CAP_AMBIENT, *map(ctypes.c_ulong, (_AMBIENT_CLEAR_ALL, 0, 0, 0))))
    for capability in frozenset(range(_LAST_CAPABILITY + 1)) - kept:
        try:
            prctl(Prctl.CAPBSET_DROP, capability)
        except OSError as error:
            # The kernel knows no higher ones.
            if error.errno == errno.EINVAL:
                return
            raise


def set_filter(program: bytes) -> None:
    """Filter all later system calls of this thread by a BPF program; raises OSError."""
    _filter(program, 0)


def listen_to_filter(program: bytes) -> int:
    """The same with a program that asks; the descriptor to answer at, which is closed on exec.

    Raises OSError, also if the kernel takes no descriptor as an answer.
    """
    release = os.uname().release.partition("-")[0].split(".")
    if tuple(map(int, release[:2])) < _ANSWERED_BY_DESCRIPTORS:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    return _filter(program, _NEW_LISTENER)


def _filter(program: bytes, flags: int) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(instructions))
    number, operation = ctypes.c_long(_SYS_SECCOMP), ctypes.c_long(_SET_FILTER)
    return _check(_libc.syscall(number, operation, ctypes.c_long(flags), fprog))


def take_cores_alone() -> None:
    """Have no thread of another process run beside this one's on a core; raises OSError.

    Core scheduling (Documentation/admin-guide/hw-vuln/core-scheduling.rst): what this process
    starts has the same cookie. It does nothing on a host whose cores have one thread each.
    """
    words = map(ctypes.c_ulong, (_CORE_CREATE, 0, _ALL_THREADS, 0))
    try:
        _check(_libc.prctl(Prctl.SCHED_CORE, *words))
    except OSError as error:
        if error.errno != errno.ENODEV and _has_smt():
            raise


def _has_smt() -> bool:
    """Whether cores of the host have several threads in use; so if the kernel does not say."""
    try:
        file = os.open(_SMT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        return os.read(file, 2).strip() != b"0"
    finally:
        os.close(file)


def core_cookie() -> int:
    """The cookie of this thread, or 0; raises OSError, ENODEV if cores have one thread each."""
    cookie = ctypes.c_uint64()
    words = map(ctypes.c_ulong, (_CORE_GET, 0, _ONE_THREAD, ctypes.addressof(cookie)))
    _check(_libc.prctl(Prctl.SCHED_CORE, *words))
    return cookie.value


def landlock_version() -> int:
    """The version of the host's Landlock; raises OSError if there is none."""
    number = ctypes.c_long(_SYS_LANDLOCK_CREATE_RULESET)
    zero, flags = ctypes.c_long(0), ctypes.c_long(_LANDLOCK_VERSION)
    return _check(_libc.syscall(number, zero, zero, flags))


def deny_by_landlock(*, paths: bool = True) -> None:
    """Deny this thread all paths, all TCP, and signals and abstract sockets of other domains.

    Without `paths` it denies only the last two. It denies as much of this as the host's Landlock
    knows; raises OSError if it knows nothing of this.
    """
    version = landlock_version()
    tables = (_FILE_RIGHTS, _NET_RIGHTS, _SCOPES) if paths else ({}, {}, _SCOPES)
    attributes = _RULESET.pack(
        *(sum(rights for first, rights in table.items() if first <= version) for table in tables)
    )
    if not any(attributes):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
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
