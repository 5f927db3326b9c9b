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

import _thread
import errno
import os
import resource
import select
import stat
import sys

from cerne.vmm.jail import system
from cerne.vmm.jail.log_limit import limit
from cerne.vmm.jail.read_only import answer
from cerne.vmm.jail.system import LACKING, MOST_THREADS, Attribute, Mount, Namespace, Prctl
from cerne.vmm.registration import register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# No file of a program is there.
_MOUNT_POINT = "/sys"
_SEARCHED_BY_ALL = 0o022
_ALL_READ, _ALL_READ_FOLDER = 0o004, 0o005
_SETPCAP = 8
NET_BIND_SERVICE = 10
"""The capability to listen at a port below 1024."""
FIRST_FREE_PORT = 1024
SYSTEM = "/usr"
"""Programs elsewhere need more of the host than is known here."""
FILE_CAPABILITIES = (0, 1, 2, 3)
"""Those by which root reads, writes and gives away the files of others (capabilities(7)).

Without CAP_FSETID a file that others changed is no longer setuid.
"""

_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
_FILES = ("/etc/ld.so.cache", "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
_SYSTEM = (*_FOLDERS, *_FILES, "/etc/alternatives")
# What a program needs that starts no other.
_LIBRARY_FOLDERS = ("/lib", "/lib32", "/lib64", "/libx32")
_LIBRARIES = (*(f"/usr{path}" for path in (*_LIBRARY_FOLDERS, "/local/lib")), *_LIBRARY_FOLDERS)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_VM_DEVICES = ("/dev/kvm", "/dev/vhost-vsock")
_ROOT_SIZE = "size=1m,mode=0755"
_READ_ONLY = Attribute.READ_ONLY | Attribute.NOSUID
_OWN = Attribute.NOSUID | Attribute.NODEV
_END = "--"


class Log:
    """A log of a limited size."""

    def __init__(self, descriptor: int, registration: int, most: int) -> None:
        self.descriptor = descriptor
        """The file, to which the program appends."""
        self.registration = registration
        """The registration of the process that limits it (`cerne.vmm.registration`)."""
        self.most = most
        """Bytes after which it begins again."""


class Mapped:
    """A file that a program maps privately, and opens to write first of all files.

    It gets it only to read; the process that limits its log answers (`read_only.answer`).
    """

    def __init__(self, path: str, filter: bytes) -> None:  # noqa: A002 - the kernel's word
        self.path = path
        self.filter = filter
        """The filter that asks at each such opening (`cerne.vmm.jail.bpf.opening`)."""


class Room:
    """What a program needs of its host."""

    def __init__(
        self,
        *,
        filter: bytes,  # noqa: A002 - the kernel's word
        own_root: bool = False,
        user: int | None = None,
        programs: Iterable[str] = (),
        reads: Iterable[str] = (),
        writes: Iterable[str] = (),
        network: bool = False,
        settings: bool = False,
        capabilities: Iterable[int] = (),
        own_cores: bool = False,
        threads: int = MOST_THREADS,
        descriptors: int | None = None,
        memory: int | None = None,
        file_size: int | None = None,
        log: Log | None = None,
        mapped: Mapped | None = None,
    ) -> None:
        self.filter = filter
        """Its filter of system calls (`cerne.vmm.jail.bpf`)."""
        self.own_root = own_root
        """Whether it gets a root of its own."""
        self.user = user
        """Its user and group id, which needs such a root; None to keep the present ones."""
        self.programs = list(programs)
        """With these its root has only them and the libraries of the system, else all of /usr."""
        self.reads = list(reads)
        """Files and directories that it reads."""
        self.writes = list(writes)
        """Files and directories that it writes too."""
        self.network = network
        """Whether it uses the host's network."""
        self.settings = settings
        """Whether it reads the kernel's settings in /proc."""
        self.capabilities = list(capabilities)
        """Those that it keeps."""
        self.own_cores = own_cores
        """Whether it shares no core's threads with other processes."""
        self.threads = threads
        """The most threads of its user."""
        self.descriptors = descriptors
        """The most open files; None for no limit of its own."""
        self.memory = memory
        """The most bytes of private memory; None for no limit."""
        self.file_size = file_size
        """The most bytes of a file that it writes; None for no limit."""
        self.log = log
        """The log that another process limits while the program runs."""
        self.mapped = mapped
        """The file that the program maps privately."""

    def words(self) -> list[str]:
        """The arguments of this program for it, up to those of the program to execute."""
        numbers = {
            "user": self.user,
            "threads": self.threads,
            "descriptors": self.descriptors,
            "memory": self.memory,
            "file-size": self.file_size,
        }
        log, mapped = self.log, self.mapped
        return [
            f"filter={self.filter.hex()}",
            *(["own-root"] if self.own_root else []),
            *(f"{name}={number}" for name, number in numbers.items() if number is not None),
            *(f"program={path}" for path in self.programs),
            *(f"read={path}" for path in self.reads),
            *(f"write={path}" for path in self.writes),
            *(["network"] if self.network else []),
            *(["settings"] if self.settings else []),
            *(f"capability={number}" for number in self.capabilities),
            *(["own-cores"] if self.own_cores else []),
            *([] if log is None else [f"log={log.descriptor},{log.registration},{log.most}"]),
            *([] if mapped is None else [f"mapped={mapped.filter.hex()},{mapped.path}"]),
            _END,
        ]

    @classmethod
    def from_words(cls, words: list[str]) -> Room:
        """What `words` described."""
        given: dict[str, list[str]] = {}
        for word in words:
            name, _, value = word.partition("=")
            given.setdefault(name, []).append(value)

        def number(name: str) -> int | None:
            return int(given[name][0]) if name in given else None

        return cls(
            filter=bytes.fromhex(given["filter"][0]),
            own_root="own-root" in given,
            user=number("user"),
            programs=given.get("program", ()),
            reads=given.get("read", ()),
            writes=given.get("write", ()),
            network="network" in given,
            settings="settings" in given,
            capabilities=map(int, given.get("capability", ())),
            own_cores="own-cores" in given,
            threads=int(given["threads"][0]),
            descriptors=number("descriptors"),
            memory=number("memory"),
            file_size=number("file-size"),
            log=Log(*map(int, given["log"][0].split(","))) if "log" in given else None,
            mapped=_mapped(given["mapped"][0]) if "mapped" in given else None,
        )


def _mapped(word: str) -> Mapped:
    asking, _, path = word.partition(",")
    return Mapped(path, bytes.fromhex(asking))


class RefusedError(Exception):
    """A wall was refused for another reason than that this host lacks it."""


def main() -> int:
    """Put the walls up, and execute the program."""
    end = sys.argv.index(_END)
    command = sys.argv[end + 1 :]
    room = Room.from_words(sys.argv[1:end])
    try:
        listener = None if room.mapped is None else _listen(room, room.mapped)
        confine(room)
        if room.log is not None:
            _limit_beside(room.log, listener, room.mapped)
        os.execv(command[0], command)
    except RefusedError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        print(f"executing {command[0]} failed: {error}", file=sys.stderr)
    return 1


def confine(room: Room) -> None:
    """Confine this process, and what it executes, for ever.

    Walls that this host lacks are named on standard error, and the others are put up.

    Raises:
        RefusedError: a wall was refused for another reason.
    """
    if room.own_cores:
        try:
            system.take_cores_alone()
        except OSError as error:
            raise RefusedError(f"core scheduling failed: {error.strerror}") from error
    _limit(room)
    if room.own_root:
        files: list[_Files] = []
        # Before anything has changed, because not every file system maps owners.
        if room.user is not None and not _put_up("user", lambda: files.append(_Files(room))):
            _keep_user(room)
        if not _put_up("root", lambda: _enter_root(room, files)) and room.user is not None:
            _keep_user(room)
    if os.geteuid() == 0 or room.own_root:
        kept = frozenset(room.capabilities)
        _put_up("capabilities", lambda: _become(room.user, kept))
    system.prctl(Prctl.SET_NO_NEW_PRIVS, 1)
    _put_up("landlock", lambda: system.deny_by_landlock(paths=False))
    _put_up("seccomp", lambda: system.set_filter(room.filter))


def _listen(room: Room, mapped: Mapped) -> int | None:
    """Have the mapped file only read; return where opening it is to be answered.

    A host that lacks this lets the program write to it.
    """
    listeners: list[int] = []
    system.prctl(Prctl.SET_NO_NEW_PRIVS, 1)
    if _put_up(
        "read-only memory", lambda: listeners.append(system.listen_to_filter(mapped.filter))
    ):
        room.reads.append(mapped.path)
        return listeners[0]
    room.writes.append(mapped.path)
    return None


def _keep_user(room: Room) -> None:
    """Have the present user, who may use the files of others."""
    room.user = None
    room.capabilities += FILE_CAPABILITIES


def _limit_beside(log: Log, listener: int | None, mapped: Mapped | None) -> None:
    """Start a process that limits the log; it has the same walls, and ends with the program.

    It also answers the program's opening of its mapped file, if there is a listener for it.
    """
    reading, writing = os.pipe()
    asked = []
    if listener is not None and mapped is not None:
        asked = [listener, os.open(mapped.path, os.O_RDONLY | os.O_CLOEXEC)]
    if os.fork() == 0:
        try:
            register(log.registration)
            system.prctl(Prctl.SET_DUMPABLE, 0)
            _keep_only((log.descriptor, reading, *asked))
            if asked:
                _thread.start_new_thread(answer, (asked[0], asked[1]))
            limit(log.descriptor, log.most, reading)
        finally:
            os._exit(0)
    for descriptor in (log.descriptor, log.registration, *asked):
        os.close(descriptor)
    os.close(reading)
    os.set_inheritable(writing, True)


def _keep_only(kept: Iterable[int]) -> None:
    """Close all other descriptors, but for the standard ones."""
    first = 3
    for descriptor in sorted(kept):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _put_up(wall: str, put: Callable[[], None]) -> bool:
    """Put up a wall, or say that this host lacks it."""
    try:
        put()
    except OSError as error:
        if error.errno not in LACKING:
            raise RefusedError(f"confining the program failed ({wall}): {error}") from error
        print(f"this host lacks {wall}: {error.strerror}", file=sys.stderr, flush=True)
        return False
    return True


def _limit(room: Room) -> None:
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: room.threads,
        resource.RLIMIT_NOFILE: room.descriptors,
        resource.RLIMIT_DATA: room.memory,
        resource.RLIMIT_FSIZE: room.file_size,
    }
    for kind, most in limits.items():
        if most is not None:
            _, hard = resource.getrlimit(kind)
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(kind, (least, least))


def _become(user: int | None, kept: frozenset[int]) -> None:
    """Change the user, and have only these capabilities."""
    if user is not None:
        system.prctl(Prctl.SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        # The change took them out of the effective set.
        system.set_capabilities(kept | {_SETPCAP})
    system.drop_bounding_set(kept)
    system.set_capabilities(kept)


def _enter_root(room: Room, prepared: list[_Files]) -> None:
    """Make a root with only the program's files; without root, in a user namespace."""
    namespaces = Namespace.MOUNT | Namespace.IPC | Namespace.UTS
    if not room.network:
        namespaces |= Namespace.NET
    if os.geteuid() == 0:
        system.unshare(namespaces)
    else:
        _leave_user_namespace(namespaces)
    system.mount("none", "/", "", Mount.PRIVATE | Mount.RECURSIVE)
    system.mount("none", _MOUNT_POINT, "tmpfs", Mount.NOSUID | Mount.NOEXEC, _ROOT_SIZE)
    mask = os.umask(_SEARCHED_BY_ALL)
    for path in (*_LIBRARIES, *_FILES, *room.programs) if room.programs else _SYSTEM:
        _copy(path)
    owner = os.geteuid() if room.user is None else room.user
    for path in _DEVICES if room.programs else (*_DEVICES, *_VM_DEVICES):
        _device(path, owner)
    for path in (*room.reads, *room.writes):
        if stat.S_ISBLK(os.stat(path).st_mode):
            _device(path, owner)
    files = prepared[0] if prepared else _Files(room)
    files.attach()
    os.makedirs(f"{_MOUNT_POINT}/tmp", exist_ok=True)
    _show_own_processes(room)
    os.umask(mask)
    system.replace_root(_MOUNT_POINT)
    flags = Mount.REMOUNT | Mount.BIND | Mount.READ_ONLY | Mount.NOSUID | Mount.NOEXEC
    system.mount("none", "/", "", flags)


def _leave_user_namespace(others: int) -> None:
    """Leave the user namespace for one with this process's ids alone, and others for new ones."""
    user, group = os.geteuid(), os.getegid()
    system.unshare(others | Namespace.USER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


class _Files:
    """Files and directories of the host as mounts that belong to the room's user."""

    def __init__(self, room: Room) -> None:
        self._user = room.user
        self._maps: dict[tuple[int, int], int] = {}
        self._trees: list[tuple[str, int]] = []
        try:
            for path in room.reads:
                self._take(path, _OWN | Attribute.READ_ONLY)
            for path in room.writes:
                self._take(path, _OWN)
        except BaseException:
            for _, tree in self._trees:
                os.close(tree)
            raise
        finally:
            for namespace in self._maps.values():
                os.close(namespace)

    def attach(self) -> None:
        """Mount all under their own paths."""
        for path, tree in self._trees:
            system.attach_mount(tree, _place(path))

    def _take(self, path: str, attributes: int) -> None:
        status = os.stat(path)
        if stat.S_ISBLK(status.st_mode):
            return
        folder = stat.S_ISDIR(status.st_mode)
        ids, readable = None, _ALL_READ_FOLDER if folder else _ALL_READ
        open_to_all = attributes & Attribute.READ_ONLY and status.st_mode & readable == readable
        if self._user is not None and not open_to_all:
            owners = (status.st_uid, status.st_gid)
            if owners not in self._maps:
                self._maps[owners] = _id_map(*owners, self._user)
            ids = self._maps[owners]
        self._trees.append((path, system.clone_mount(path, attributes, folder=folder, ids=ids)))


def _copy(path: str) -> None:
    """Have a part of the system under its own path."""
    if not os.path.exists(path) or os.path.exists(f"{_MOUNT_POINT}{path}"):
        return
    if os.path.islink(path) and path in _FOLDERS:
        os.symlink(os.readlink(path), f"{_MOUNT_POINT}{path}")
    else:
        folder = os.path.isdir(path)
        system.bind(os.path.realpath(path), _place(path), _READ_ONLY, folder=folder)


def _device(path: str, user: int) -> None:
    if not os.path.exists(path):
        return
    place = f"{_MOUNT_POINT}{path}"
    os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
    device = os.stat(path)
    try:
        os.mknod(place, stat.S_IFMT(device.st_mode) | 0o600, device.st_rdev)
        os.chown(place, user, user)
    except PermissionError:
        # Only root of the host makes devices.
        system.bind(path, _place(path), Attribute.NOSUID)


def _show_own_processes(room: Room) -> None:
    """Have /proc with no process of another user.

    Without root it has all that the user sees; Landlock keeps it from using what is not its own.
    """
    place = f"{_MOUNT_POINT}/proc"
    os.mkdir(place)
    flags = Mount.NOSUID | Mount.NODEV | Mount.NOEXEC | Mount.READ_ONLY
    try:
        parts = "" if room.settings else ",subset=pid"
        system.mount("none", place, "proc", flags, f"hidepid=4{parts}")
    except OSError:
        system.bind("/proc", place, _OWN | Attribute.READ_ONLY, folder=True)


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
            system.prctl(Prctl.PDEATHSIG, system.SIGKILL)
            if os.getppid() == parent:
                os.write(waits, b"x")
                select.select([], [], [])
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
        os.kill(child, system.SIGKILL)
        os.waitpid(child, 0)


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
