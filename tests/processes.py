"""The processes of this machine, as the tests look for them in /proc (proc(5)).

Any process may end between its name and what is read of it: it is left out then.
"""

import contextlib
import os
from pathlib import Path


def _contents(name: str) -> dict[int, bytes]:
    """What the file `name` of every process of /proc holds, by process id."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found[int(entry.name)] = (entry / name).read_bytes()
    return found


def commands() -> dict[int, list[bytes]]:
    """The words of each process's command line."""
    return {pid: line.split(b"\0") for pid, line in _contents("cmdline").items()}


def naming(path: Path) -> list[int]:
    """The processes whose command line names `path`, or a path that begins so."""
    marker = os.fsencode(path)
    return [pid for pid, line in _contents("cmdline").items() if marker in line]


def with_variable(name: str, value: str) -> list[int]:
    """The processes that were started with this variable in their environment."""
    marker = os.fsencode(f"{name}={value}")
    return [pid for pid, held in _contents("environ").items() if marker in held.split(b"\0")]


def parents() -> dict[int, int]:
    """The parent of each process."""
    return {
        pid: int(held.rpartition(b")")[2].split()[1]) for pid, held in _contents("stat").items()
    }


def opened(pid: int) -> list[str]:
    """What a process has open, by path or kind: nothing if it has ended."""
    found = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(entry.readlink()))
    return sorted(found)


def opened_files(pid: int) -> list[str]:
    """What a process has open without sockets, which come and go with its clients."""
    return [name for name in opened(pid) if not name.startswith("socket:")]
