"""What processes use of the host, from /proc (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from cerne.host.process import ProcessIdentity
from cerne.units import KIB

_PROCESSES = Path("/proc")
_NANOSECONDS = 1_000_000_000
_USER_TIME, _SYSTEM_TIME = 11, 12
"""Places in ``stat``, counted after the name, which may contain anything."""


def stat_fields(pid: int) -> list[bytes]:
    """The fields of a process's ``stat`` after its name, so that field 3 is the first.

    Raises:
        OSError: it has ended.
    """
    return (_PROCESSES / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()


def cpu_seconds(processes: Iterable[ProcessIdentity]) -> float:
    """The CPU time that processes have used, without those that have ended."""
    ticks = 0
    for process in processes:
        with contextlib.suppress(OSError):
            fields = stat_fields(process.pid)
            ticks += int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME])
    return ticks / os.sysconf("SC_CLK_TCK")


def proportional_memory(processes: Iterable[ProcessIdentity]) -> int | None:
    """Bytes of memory that processes hold: of a page that several share, each has its part (PSS).

    None if this user may not see that of one: without root, no process sees it of one that is
    not dumpable (ptrace(2)).
    """
    total = 0
    for process in processes:
        try:
            text = (_PROCESSES / str(process.pid) / "smaps_rollup").read_bytes()
        except PermissionError:
            return None
        except OSError:
            # It has ended.
            continue
        total += _pss(text)
    return total


def waited_seconds(pid: int, threads: Iterable[int]) -> float | None:
    """Seconds in which threads of a process could run and got no CPU; None if that is unknown.

    It is what the kernel reports to a guest as stolen time (sched-stats, Documentation/scheduler).
    """
    waited = []
    for thread in threads:
        try:
            words = (_PROCESSES / str(pid) / "task" / str(thread) / "schedstat").read_text().split()
            waited.append(int(words[1]))
        except (OSError, IndexError, ValueError):
            return None
    return sum(waited) / _NANOSECONDS if waited else None


def _pss(text: bytes) -> int:
    for line in text.splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * KIB
    return 0
