"""Registers a forked process as a machine's (see `cerne.host.members`)."""

from __future__ import annotations

import os
import time

# A program that confines others imports this module at each start, and little else.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FORKED = b"forked"
"""The first word of the registration of a process that does not see /proc."""

_SECOND = 1_000_000_000


def register(descriptor: int) -> None:
    """Write this process's pid to its registration; end the process if that was withdrawn.

    With the pid it writes the present time in clock ticks since boot: a process of this pid that
    started later is another one. A withdrawal removes the file first and reads it afterwards:
    either this process finds the file removed, or the withdrawal reads its pid.
    """
    os.write(descriptor, b"%s %d %d\n" % (FORKED, os.getpid(), boot_ticks()))
    withdrawn = os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    if withdrawn:
        os._exit(1)


def boot_ticks() -> int:
    """The present time in clock ticks since boot, as the kernel counts processes' starts."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") // _SECOND


def enter(doors: Sequence[int]) -> None:
    """Enter control groups by their open ``cgroup.procs``; end the process if that fails."""
    for door in doors:
        try:
            os.write(door, b"0")
        except OSError as error:
            _say(f"entering the control group failed: {error.strerror}\n")
            os._exit(1)
        os.close(door)


def _say(words: str) -> None:
    try:
        os.write(2, words.encode())
    except OSError:
        return
