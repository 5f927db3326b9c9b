"""What a VMM's process gives up before its guest runs: privileges, and the way back to them.

By then everything that it needs is open. It becomes nobody where it was root, and neither it nor
what it might start can gain privileges again (prctl(2), PR_SET_NO_NEW_PRIVS). Its memory, which is
the guest's, is dumped nowhere when it crashes, and no other process of its user may look into it.
"""

from __future__ import annotations

import ctypes
import os
import resource

from cerne.errors import HostError

_NOBODY = 65534
_SET_DUMPABLE, _SET_NO_NEW_PRIVILEGES = 4, 38
_OWNER_ALONE = 0o077
# Fields of proc(5)'s stat, counted from the one after the command's name.
_ARGUMENTS_START, _ARGUMENTS_END = 45, 46


def enter() -> None:
    """Give up privileges, for this process and for good; while it has one thread.

    Raises:
        HostError: the kernel refused; a machine is not run with more than it needs.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    os.umask(_OWNER_ALONE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    # A program that takes core dumps by a pipe is not kept from them by the limit (core(5)).
    _prctl(_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise HostError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")


class Title:
    """The process's command line, which a forked child must not have from its parent.

    Made before `enter`: the kernel tells only the privileged where it lies.
    """

    def __init__(self) -> None:
        with os.fdopen(os.open("/proc/self/stat", os.O_RDONLY), "rb") as status:
            fields = status.read().rpartition(b")")[2].split()
        self._start = int(fields[_ARGUMENTS_START])
        self._size = int(fields[_ARGUMENTS_END]) - self._start

    def set(self, text: str) -> None:
        """Show this text, as much of it as there is room for."""
        title = os.fsencode(text)[: self._size - 1]
        ctypes.memmove(self._start, title.ljust(self._size, b"\0"), self._size)
