"""Puts walls around a program that is not ours, such as QEMU, and executes it.

``cerne.vmm.start program WORD… -- ARGUMENT…``: the process gets a root that has only the files that
the words of a `Room` name, under their own paths, with the system's libraries and a few devices.
Its user id owns there what root owns on the host (an id-mapped mount, mount_setattr(2)), so that no
file of the host belongs to the id. A process without root gets no such root, only the walls that it
may put up.

It runs before each start of such a program: it imports as little as it can, since pathlib, json,
typing and contextlib take longer than all the rest.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import sys

from cerne.vmm.jail import system
from cerne.vmm.jail.system import LACKING, MOST_THREADS, Attribute, Mount, Namespace, Prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# No file of a program is there.
_MOUNT_POINT = "/sys"
_SETPCAP = 8
NET_BIND_SERVICE = 10
"""The capability to listen at a port below 1024."""
FILE_CAPABILITIES = (0, 1, 2, 3, 4)
"""Those by which root reads, writes and gives away the files of others (capabilities(7))."""

_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_FILES = ("/etc/ld.so.cache", "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
_SYSTEM = (*_FOLDERS, *_FILES, "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/kvm", "/dev/vhost-vsock")
_ROOT_SIZE = "size=1m,mode=0755"
_READ_ONLY = Attribute.READ_ONLY | Attribute.NOSUID
_END = "--"


class Room:
    """What a program needs of its host."""

    def __init__(
        self,
        *,
        filter: bytes,  # noqa: A002 - the kernel's word
        own_root: bool = False,
        user: int | None = None,
        reads: Iterable[str] = (),
        writes: Iterable[str] = (),
        network: bool = False,
        capabilities: Iterable[int] = (),
        own_cores: bool = False,
    ) -> None:
        self.filter = filter
        """Its filter of system calls (`cerne.vmm.jail.bpf`)."""
        self.own_root = own_root
        """Whether it gets a root of its own, for which this process has to be root."""
        self.user = user
        """Its user and group id; None to keep the present ones."""
        self.reads = list(reads)
        """Files and directories that it reads."""
        self.writes = list(writes)
        """Files and directories that it writes too."""
        self.network = network
        """Whether it uses the host's network."""
        self.capabilities = list(capabilities)
        """Those that it keeps."""
        self.own_cores = own_cores
        """Whether it shares no core's threads with other processes."""

    def words(self) -> list[str]:
        """The arguments of this program for it, up to those of the program to execute."""
        return [
            f"filter={self.filter.hex()}",
            *(["own-root"] if self.own_root else []),
            *([] if self.user is None else [f"user={self.user}"]),
            *(f"read={path}" for path in self.reads),
            *(f"write={path}" for path in self.writes),
            *(["network"] if self.network else []),
            *(f"capability={number}" for number in self.capabilities),
            *(["own-cores"] if self.own_cores else []),
            _END,
        ]

    @classmethod
    def from_words(cls, words: list[str]) -> Room:
        """What `words` described."""
        given: dict[str, list[str]] = {}
        for word in words:
            name, _, value = word.partition("=")
            given.setdefault(name, []).append(value)
        return cls(
            filter=bytes.fromhex(given["filter"][0]),
            own_root="own-root" in given,
            user=int(given["user"][0]) if "user" in given else None,
            reads=given.get("read", ()),
            writes=given.get("write", ()),
            network="network" in given,
            capabilities=map(int, given.get("capability", ())),
            own_cores="own-cores" in given,
        )


class _RefusedError(Exception):
    """A wall was refused for another reason than that this host lacks it."""


def main() -> int:
    """Put the walls up, and execute the program."""
    end = sys.argv.index(_END)
    command = sys.argv[end + 1 :]
    try:
        _confine(Room.from_words(sys.argv[1:end]))
        os.execv(command[0], command)
    except _RefusedError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"executing {command[0]} failed: {error}", file=sys.stderr)
    return 1


def _confine(room: Room) -> None:
    if room.own_cores:
        try:
            system.take_cores_alone()
        except OSError as error:
            raise _RefusedError(f"core scheduling failed: {error.strerror}") from error
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, MOST_THREADS)):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    if room.own_root:
        _put_up("a root and a user id of its own", lambda: _enter(room))
    system.prctl(Prctl.SET_NO_NEW_PRIVS, 1)
    _put_up("landlock", lambda: system.deny_by_landlock(paths=False))
    _put_up("seccomp", lambda: system.set_filter(room.filter))


def _put_up(wall: str, put: Callable[[], None]) -> None:
    """Put up a wall, or say that this host lacks it."""
    try:
        put()
    except OSError as error:
        if error.errno not in LACKING:
            raise _RefusedError(f"confining the program failed ({wall}): {error}") from error
        print(f"this host lacks {wall}: {error.strerror}", file=sys.stderr, flush=True)


def _enter(room: Room) -> None:
    """Enter its root as its user. Root without such a root keeps its capabilities for files."""
    kept = frozenset(room.capabilities)
    _enter_root(room)
    if room.user is not None:
        _become(room.user)
    system.drop_bounding_set(kept)
    system.set_capabilities(kept)


def _become(user: int) -> None:
    """Change the user; the capabilities stay until they are dropped."""
    system.prctl(Prctl.SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # The change took them out of the effective set.
    system.set_capabilities(frozenset((_SETPCAP, NET_BIND_SERVICE)))


def _enter_root(room: Room) -> None:
    """Make a root with only the program's files."""
    owner = os.geteuid() if room.user is None else room.user
    namespaces = Namespace.MOUNT | Namespace.IPC | Namespace.UTS
    system.unshare(namespaces if room.network else namespaces | Namespace.NET)
    system.mount("none", "/", "", Mount.PRIVATE | Mount.RECURSIVE)
    system.mount("none", _MOUNT_POINT, "tmpfs", Mount.NOSUID | Mount.NOEXEC, _ROOT_SIZE)
    for path in _SYSTEM:
        _copy(path)
    for path in _DEVICES:
        _device(path, owner)
    files = _Files(room.user)
    try:
        for path in room.reads:
            files.give(path, Attribute.READ_ONLY)
        for path in room.writes:
            files.give(path, Attribute(0))
    finally:
        files.close()
    _show_own_processes()
    system.replace_root(_MOUNT_POINT)
    flags = Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | Mount.NOSUID | Mount.NOEXEC
    system.mount("none", "/", "", flags)


class _Files:
    """Mounts files and directories of the host so that they belong to one user."""

    def __init__(self, user: int | None) -> None:
        self._user = user
        self._maps: dict[tuple[int, int], int] = {}

    def give(self, path: str, attributes: Attribute) -> None:
        """Mount one under its own path."""
        ids = None
        if self._user is not None:
            status = os.stat(path)
            owners = (status.st_uid, status.st_gid)
            if owners not in self._maps:
                self._maps[owners] = _id_map(*owners, self._user)
            ids = self._maps[owners]
        system.bind(path, _place(path), attributes | Attribute.NOSUID | Attribute.NODEV, ids)

    def close(self) -> None:
        """Forget the owners."""
        for namespace in self._maps.values():
            os.close(namespace)


def _copy(path: str) -> None:
    """Have a part of the system under its own path."""
    if not os.path.exists(path):
        return
    if os.path.islink(path) and path in _FOLDERS:
        os.symlink(os.readlink(path), f"{_MOUNT_POINT}{path}")
    else:
        system.bind(os.path.realpath(path), _place(path), _READ_ONLY)


def _device(path: str, user: int) -> None:
    if not os.path.exists(path):
        return
    place = f"{_MOUNT_POINT}{path}"
    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    os.mknod(place, stat.S_IFCHR | 0o600, os.stat(path).st_rdev)
    os.chown(place, user, user)


def _show_own_processes() -> None:
    """Have /proc with no process of another user; without it QEMU works too."""
    place = f"{_MOUNT_POINT}/proc"
    os.mkdir(place)
    flags = Mount.NOSUID | Mount.NODEV | Mount.NOEXEC | Mount.READ_ONLY
    try:
        system.mount("none", place, "proc", flags, "hidepid=2,subset=pid")
    except OSError:
        return


def _place(path: str) -> str:
    """Make the place at which a file or a directory is mounted."""
    place = f"{_MOUNT_POINT}{path}"
    if os.path.isdir(path):
        os.makedirs(place, mode=0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    return place


def _id_map(owner: int, group: int, user: int) -> int:
    """A user namespace by which the owner's files are this user's."""
    tells, waits = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            system.unshare(Namespace.USER)
            # It has what this process has open, and must not outlive it.
            system.prctl(Prctl.PDEATHSIG, signal.SIGKILL)
            if os.getppid() == parent:
                os.write(waits, b"x")
                signal.pause()
        finally:
            os._exit(1)
    os.close(waits)
    try:
        if not os.read(tells, 1):
            raise OSError(errno.EPERM, "user namespaces are not allowed")
        _write(f"/proc/{child}/uid_map", f"{owner} {user} 1")
        _write(f"/proc/{child}/gid_map", f"{group} {user} 1")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(tells)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
