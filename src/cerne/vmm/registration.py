"""Registers a forked process as a machine's (see `cerne.host.members`)."""

from __future__ import annotations

import os
import time

FORKED = b"forked"
"""The first word of the registration of a process that does not see /proc."""

_SECOND = 1_000_000_000


def register(descriptor: int) -> None:
    """Write this process's pid to its registration; end the process if that was withdrawn.

    With the pid it writes the present time in clock ticks since boot: a process of this pid that
    started later is another one. A withdrawal removes the file first and reads it afterwards:
    either this process finds the file removed, or the withdrawal reads its pid.
    """
    ticks = time.clock_gettime_ns(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK") // _SECOND
    os.write(descriptor, b"%s %d %d\n" % (FORKED, os.getpid(), ticks))
    withdrawn = os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    if withdrawn:
        os._exit(1)
