"""The walls around the processes of one machine, as the kernel shows them in /proc (proc(5)).

They are looked at from outside, whatever a process says of itself. Only Landlock is not shown: it
is up if the kernel has it, and the process did not name it among what its host lacks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cerne.host.process import status_of
from cerne.host.walls import landlock
from cerne.vmm.jail.walls import Wall

_PROCESSES = Path("/proc")
_NAMESPACES = ("mnt", "ipc", "uts")
_NETWORK = "network"
"""The network namespace, which some programs do not have of their own."""
_LACKS = "this host lacks "
_LONGEST_LOG = 65536
_CAPABILITIES = {
    0: "chown",
    1: "dac_override",
    2: "dac_read_search",
    3: "fowner",
    6: "setgid",
    7: "setuid",
    8: "setpcap",
    10: "net_bind_service",
    18: "sys_chroot",
}


@dataclass(frozen=True, slots=True)
class ProcessWalls:
    """One process of a machine, and the walls around it."""

    role: str
    pid: int
    user: int
    """Its user id on this host."""
    up: tuple[str, ...] = ()
    """The names of the walls, as in docs/isolation.md."""
    missing: dict[str, str] = field(default_factory=dict)
    """Those that it does not have, each with the reason."""


def walls_of(role: str, pid: int, log: Path, root: Path = _PROCESSES) -> ProcessWalls | None:
    """The walls around a process; None if it has just ended. `log` is of its program.

    `root` is the directory to read from in place of /proc.
    """
    place = root / str(pid)
    try:
        status = status_of(place)
        # Root, if no process of its user may read its memory.
        owner = (place / "stat").stat().st_uid
    except (OSError, ValueError):
        return None
    user = int(status["Uid"].split()[0])
    reasons = _said(log)
    found: dict[str, str] = {
        Wall.LIMITS: _limits(place),
        Wall.NAMESPACES: _namespaces(place, root / "self", _NAMESPACES),
        _NETWORK: _namespaces(place, root / "self", ("net",)),
        Wall.ROOT: _root(place, root / "self"),
        Wall.USER: _user(user),
        Wall.CAPABILITIES: _capabilities(status.get("CapPrm", "")),
        Wall.NO_NEW_PRIVILEGES: "" if status.get("NoNewPrivs") == "1" else "it is not set",
        Wall.NO_DUMP: "" if owner != user else "processes of its user may read its memory",
        Wall.LANDLOCK: "" if landlock() else "the kernel does not have it",
        Wall.SECCOMP: "" if status.get("Seccomp") == "2" else "it has no filter",
    }
    if user == 0:
        # The files are root's in any case.
        del found[Wall.NO_DUMP]
    if reason := reasons.get(Wall.LANDLOCK):
        found[Wall.LANDLOCK] = reason
    missing = {
        str(wall): f"{why}: {reasons[wall]}" if wall in reasons and wall != Wall.LANDLOCK else why
        for wall, why in found.items()
        if why
    }
    up = tuple(str(wall) for wall, why in found.items() if not why)
    return ProcessWalls(role, pid, user, up, missing)


def _limits(place: Path) -> str:
    try:
        lines = (place / "limits").read_text().splitlines()
    except OSError as error:
        return _unseen(error)
    core = next((line for line in lines if line.startswith("Max core file size")), "")
    return "" if core.split()[4:6] == ["0", "0"] else "it writes core dumps"


def _namespaces(place: Path, own: Path, names: tuple[str, ...]) -> str:
    try:
        shared = [
            name
            for name in names
            if (place / "ns" / name).readlink() == (own / "ns" / name).readlink()
        ]
    except OSError as error:
        return _unseen(error)
    return f"it shares the host's: {', '.join(shared)}" if shared else ""


def _root(place: Path, own: Path) -> str:
    try:
        theirs, ours = (place / "root").stat(), (own / "root").stat()
    except OSError as error:
        return _unseen(error)
    same = (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
    return "its root is the host's" if same else ""


def _user(user: int) -> str:
    if user == 0:
        return "it has root's id"
    return "" if user != os.geteuid() else "only root gives user ids"


def _capabilities(permitted: str) -> str:
    bits = int(permitted or "0", 16)
    numbers = [number for number in range(bits.bit_length()) if bits >> number & 1]
    if len(numbers) > len(_CAPABILITIES):
        return "it has most"
    return f"it has {', '.join(_names(numbers))}" if numbers else ""


def _names(numbers: list[int]) -> Iterator[str]:
    for number in numbers:
        yield _CAPABILITIES.get(number, str(number))


def _unseen(error: OSError) -> str:
    return f"this user does not see it ({error.strerror})"


def _said(log: Path) -> dict[str, str]:
    """What a process said that its host lacks, before its program ran."""
    try:
        with log.open("rb") as file:
            text = file.read(_LONGEST_LOG).decode(errors="replace")
    except OSError:
        return {}
    lines = (line.removeprefix(_LACKS) for line in text.splitlines() if line.startswith(_LACKS))
    return {wall: reason for wall, _, reason in (line.partition(": ") for line in lines)}
