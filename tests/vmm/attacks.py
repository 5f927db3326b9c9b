"""What a compromised process of a machine may try, run within chosen walls.

A program, ``python -I -S attacks.py TARGETS``, with the source's directory in TARGETS. For each
choice of walls it forks and puts the walls up, as a VMM does, and forks again for each attack. It
prints in JSON what has stopped the attack: an errno's name, ``SIGSYS``, or nothing. With ``here``
in TARGETS it attacks within the walls that it finds.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_MIB = 1 << 20
_UNSHARE = 272
_CLONE_NEWNS, _CLONE_NEWUSER = 0x2_0000, 0x1000_0000
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_PTRACE_SEIZE = 0x4206
_PROT_ALL, _MAP_PRIVATE_ANONYMOUS = 7, 0x22
_THREADS = 40

T = dict[str, str]


def _call(number: int, *arguments: object) -> int:
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    answer: int = _libc.syscall(ctypes.c_long(number), *words)
    if answer < 0:
        raise OSError(ctypes.get_errno(), "")
    return answer


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _connect(family: int, address: object) -> None:
    with socket.socket(family) as link:
        link.connect(address)  # type: ignore[arg-type]


def _fork_bomb(_: T) -> None:
    reading, writing = os.pipe()
    children = []
    try:
        for _number in range(4 * _THREADS):
            children.append(os.fork())
            if children[-1] == 0:
                # Until the process that forks has closed its end.
                os.close(writing)
                os.read(reading, 1)
                os._exit(0)
    finally:
        os.close(writing)
        for child in children:
            os.waitpid(child, 0)


def _memory(_: T) -> None:
    for _piece in range(16):
        if _libc.mmap(None, 256 * _MIB, 3, 0x4022, -1, 0) == -1:
            raise OSError(ctypes.get_errno(), "")


def _descriptors(_: T) -> None:
    for _number in range(1 << 17):
        os.dup(0)


def _setuid_file(t: T) -> None:
    file = os.open(f"{t['shared']}/setuid", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    try:
        os.fchmod(file, 0o4755)
    finally:
        Path(t["shared"], "setuid").unlink()


def _exec(_: T) -> None:
    os.execv("/bin/true", ["true"])


def _user_namespace(_: T) -> None:
    _call(_UNSHARE, _CLONE_NEWUSER)


def _perf(_: T) -> None:
    software = b"\1\0\0\0\x80\0\0\0"
    _call(298, software + bytes(120), 0, -1, -1, 0)


def _new_code(_: T) -> None:
    if _libc.mmap(None, 4096, _PROT_ALL, _MAP_PRIVATE_ANONYMOUS, -1, 0) in (-1, None):
        raise OSError(ctypes.get_errno(), "")


def _name_host(_: T) -> None:
    name = os.uname().nodename.encode()
    _call(170, name, len(name))


ATTACKS: dict[str, Callable[[T], object]] = {
    "read /etc/shadow": lambda _: _open("/etc/shadow"),
    "read another machine's disk": lambda t: _open(t["disk"]),
    "read another machine's log": lambda t: _open(t["log"]),
    "connect to another machine's socket": lambda t: _connect(socket.AF_UNIX, t["socket"]),
    "list /proc": lambda _: list(Path("/proc/1").iterdir()),
    "connect to the host's network": lambda t: _connect(
        socket.AF_INET, ("127.0.0.1", int(t["port"]))
    ),
    "connect to an abstract socket": lambda t: _connect(socket.AF_UNIX, f"\0{t['abstract']}"),
    "signal another machine's process": lambda t: os.kill(int(t["victim"]), 0),
    "trace another machine's process": lambda t: _call(101, _PTRACE_SEIZE, int(t["victim"]), 0, 0),
    "limit another process": lambda t: resource.prlimit(
        int(t["tester"]), resource.RLIMIT_CORE, (0, 0)
    ),
    "run a program": _exec,
    "mount": lambda t: _call(165, b"none", os.fsencode(t["shared"]), b"tmpfs", 0, None),
    "make a user namespace": _user_namespace,
    "fork without end": _fork_bomb,
    "take memory without end": _memory,
    "open descriptors without end": _descriptors,
    "write a setuid file": _setuid_file,
    "read the kernel's log": lambda _: _call(103, 10, None, 0),
    "open the kernel's log": lambda _: _open("/dev/kmsg"),
    "set up io_uring": lambda _: _call(425, 1, ctypes.create_string_buffer(120)),
    "make a BPF map": lambda _: _call(321, 0, b"\2\0\0\0\4\0\0\0\4\0\0\0\1\0\0\0" + bytes(56), 72),
    "use perf": _perf,
    "add a key": lambda _: _call(248, b"user", b"cerne", b"x", 1, -2),
    "use userfaultfd": lambda _: os.close(_call(323, 0)),
    "map new code": _new_code,
    "set the host's name": _name_host,
    "change the root": lambda t: os.chroot(t["shared"]),
}


def _outcome(attack: str, targets: T) -> str:
    """What stopped the attack in a process of its own; empty if nothing did."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            # A program that is run ends well, and says nothing.
            ATTACKS[attack](targets)
        except OSError as error:
            said = errno.errorcode[error.errno or 0]
        except MemoryError:
            said = "ENOMEM"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    said = os.read(reading, 100).decode()
    os.close(reading)
    _, status = os.waitpid(child, 0)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said


def _outcomes(targets: T, confine: Callable[[], object]) -> T:
    """What stopped each attack in a process with these walls."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        said: object = "confining failed"
        try:
            confine()
            said = {attack: _outcome(attack, targets) for attack in ATTACKS}
        finally:
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as report:
        found: T = json.load(report)
    os.wait()
    return found


def main() -> None:
    """Run all attacks within all choices of walls."""
    targets: T = json.loads(sys.argv[1])
    if "here" in targets:
        print(json.dumps({attack: _outcome(attack, targets) for attack in ATTACKS}))
        return
    # What succeeds without walls leaves no mount behind.
    _call(_UNSHARE, _CLONE_NEWNS)
    _call(165, b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    sys.path.append(targets["source"])
    from cerne.vmm.jail.calls import VMM_CALLS
    from cerne.vmm.jail.walls import Confinement, Wall, enter

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def confine(walls: Iterable[Wall]) -> None:
        enter(Confinement(int(targets["user"]), VMM_CALLS, _THREADS, frozenset(walls)))

    choices: dict[str, set[Wall]] = {"none": set(), "all": set(Wall)}
    choices |= {f"only {wall}": {wall} for wall in Wall}
    # An empty root is one of a mount namespace.
    choices["only root"].add(Wall.NAMESPACES)
    choices |= {f"without {wall}": set(Wall) - {wall} for wall in Wall}
    print(
        json.dumps(
            {name: _outcomes(targets, partial(confine, walls)) for name, walls in choices.items()}
        )
    )


if __name__ == "__main__":
    main()
