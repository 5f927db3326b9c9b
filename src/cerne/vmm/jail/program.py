"""Puts walls around a program that is not ours, such as QEMU, and executes it.

``cerne.vmm.start program ROOM ARGUMENT…``: the process gets a root that has only the files that
ROOM names, under their own paths, with the system's libraries and a few devices. Its user id owns
there what root owns on the host (an id-mapped mount, mount_setattr(2)), so that no file of the host
belongs to the id. A process without root gets no such root, only the walls that it may put up.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cerne.errors import HostError
from cerne.vmm.jail import system
from cerne.vmm.jail.bpf import ALLOW, program
from cerne.vmm.jail.calls import PROGRAM_CALLS
from cerne.vmm.jail.system import Attribute, Mount, Namespace, Prctl
from cerne.vmm.jail.walls import LACKING, MOST_THREADS

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


class Room(NamedTuple):
    """What a program needs of its host."""

    own_root: bool
    """Whether it gets a root of its own, for which this process has to be root."""
    user: int | None
    """Its user and group id; None to keep the present ones."""
    reads: list[str]
    """Files and directories that it reads."""
    writes: list[str]
    """Files and directories that it writes too."""
    network: bool
    """Whether it uses the host's network."""
    capabilities: list[int]
    """Those that it keeps."""


def main() -> int:
    """Put the walls up, and execute the program."""
    try:
        _confine(Room(**json.loads(sys.argv[1])))
        os.execv(sys.argv[2], sys.argv[2:])
    except HostError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"executing {sys.argv[2]} failed: {error}", file=sys.stderr)
    return 1


def _confine(room: Room) -> None:
    kept = frozenset(room.capabilities)
    for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, MOST_THREADS)):
        _, hard = resource.getrlimit(kind)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    if room.own_root:
        # A program of root needs its capabilities for the files of others, if it sees them.
        with _unless_lacking("a root and a user id of its own"):
            _enter_root(room)
            if room.user is not None:
                _become(room.user)
            system.drop_bounding_set(kept)
            system.set_capabilities(kept)
    system.prctl(Prctl.SET_NO_NEW_PRIVS, 1)
    with _unless_lacking("landlock"):
        system.deny_by_landlock(paths=False)
    with _unless_lacking("seccomp"):
        system.set_filter(program(PROGRAM_CALLS, ALLOW))


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
    with contextlib.ExitStack() as leaving:
        maps: dict[tuple[int, int], int] = {}

        def give(path: str, attributes: Attribute) -> None:
            ids = None
            if room.user is not None:
                status = Path(path).stat()
                of = (status.st_uid, status.st_gid)
                if of not in maps:
                    maps[of] = _id_map(*of, room.user)
                    leaving.callback(os.close, maps[of])
                ids = maps[of]
            system.bind(path, _place(path), attributes | Attribute.NOSUID | Attribute.NODEV, ids)

        namespaces = Namespace.MOUNT | Namespace.IPC | Namespace.UTS
        system.unshare(namespaces if room.network else namespaces | Namespace.NET)
        system.mount("none", "/", "", Mount.PRIVATE | Mount.RECURSIVE)
        system.mount("none", _MOUNT_POINT, "tmpfs", Mount.NOSUID | Mount.NOEXEC, _ROOT_SIZE)
        for path in _SYSTEM:
            _copy(path)
        for path in _DEVICES:
            _device(path, owner)
        for path in room.reads:
            give(path, Attribute.READ_ONLY)
        for path in room.writes:
            give(path, Attribute(0))
        _show_own_processes()
        system.replace_root(_MOUNT_POINT)
        flags = Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | Mount.NOSUID | Mount.NOEXEC
        system.mount("none", "/", "", flags)


def _copy(text: str) -> None:
    """Have a part of the system under its own path."""
    path = Path(text)
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() and text in _FOLDERS:
            Path(f"{_MOUNT_POINT}{text}").symlink_to(path.readlink())
            return
        system.bind(str(path.resolve(strict=True)), _place(text), _READ_ONLY)


def _device(path: str, user: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        device = Path(path).stat()
        place = f"{_MOUNT_POINT}{path}"
        Path(place).parent.mkdir(mode=0o755, exist_ok=True)
        os.mknod(place, stat.S_IFCHR | 0o600, device.st_rdev)
        os.chown(place, user, user)


def _show_own_processes() -> None:
    """Have /proc with no process of another user; without it QEMU works too."""
    place = f"{_MOUNT_POINT}/proc"
    Path(place).mkdir()
    with contextlib.suppress(OSError):
        flags = Mount.NOSUID | Mount.NODEV | Mount.NOEXEC | Mount.READ_ONLY
        system.mount("none", place, "proc", flags, "hidepid=2,subset=pid")


def _place(path: str) -> str:
    """Make the place at which a file or a directory is mounted."""
    place = Path(f"{_MOUNT_POINT}{path}")
    place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if Path(path).is_dir():
        place.mkdir(mode=0o755, exist_ok=True)
    else:
        place.touch(mode=0o644)
    return str(place)


def _id_map(owner: int, group: int, user: int) -> int:
    """A user namespace by which the owner's files are this user's."""
    tells, waits = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            system.unshare(Namespace.USER)
            os.write(waits, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.close(waits)
    try:
        if not os.read(tells, 1):
            raise OSError(errno.EPERM, "user namespaces are not allowed")
        Path(f"/proc/{child}/uid_map").write_text(f"{owner} {user} 1")
        Path(f"/proc/{child}/gid_map").write_text(f"{group} {user} 1")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(tells)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@contextlib.contextmanager
def _unless_lacking(wall: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in LACKING:
            raise HostError(f"confining the program failed ({wall}): {error}") from error
        print(f"this host lacks {wall}: {error.strerror}", file=sys.stderr, flush=True)
