"""Drops a VMM process's privileges for ever, before its guest runs.

All files that it needs are open by then. A process of root becomes nobody, and neither the process
nor its children can gain privileges again (prctl(2), PR_SET_NO_NEW_PRIVS). Its memory, which
contains the guest's, is not dumped at a crash, and other processes of its user may not read it.
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
    """Drop the privileges of this process for ever; it must have only one thread.

    Raises:
        HostError: the kernel refused; a machine does not run with more privileges than it needs.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    os.umask(_OWNER_ALONE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_SET_NO_NEW_PRIVILEGES, 1)
    # The limit does not stop core dumps to a program by a pipe (core(5)).
    _prctl(_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise HostError(f"dropping privileges failed: {os.strerror(ctypes.get_errno())}")


class Title:
    """The process's command line, which a forked child has to change.

    Made before `enter`, because the kernel tells its address only to the privileged.
    """

    def __init__(self) -> None:
        with os.fdopen(os.open("/proc/self/stat", os.O_RDONLY), "rb") as status:
            fields = status.read().rpartition(b")")[2].split()
        self._start = int(fields[_ARGUMENTS_START])
        self._size = int(fields[_ARGUMENTS_END]) - self._start

    def set(self, text: str) -> None:
        """Show this text, cut to the available room."""
        title = os.fsencode(text)[: self._size - 1]
        ctypes.memmove(self._start, title.ljust(self._size, b"\0"), self._size)
