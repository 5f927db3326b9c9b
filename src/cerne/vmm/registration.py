"""How a forked process says that it is a machine's (see `cerne.host.members`)."""

from __future__ import annotations

import os


def register(descriptor: int) -> None:
    """Write which process this is to its registration; end it where that was withdrawn.

    What withdraws one removes the file first and reads it then: either this process finds that it
    is removed, or its words are read.
    """
    status = os.open("/proc/self/stat", os.O_RDONLY)
    try:
        os.write(descriptor, os.read(status, 4096))
    finally:
        os.close(status)
    withdrawn = os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)
    if withdrawn:
        os._exit(1)
