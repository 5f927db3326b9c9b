"""Registers a forked process as a machine's (see `cerne.host.members`)."""

from __future__ import annotations

import os


def register(descriptor: int) -> None:
    """Write this process's identity to its registration; end the process if that was withdrawn.

    A withdrawal removes the file first and reads it afterwards: either this process finds the file
    removed, or the withdrawal reads its identity.
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
