"""What a VMM's process gives up before its guest runs: privileges, and the way back to them.

By then everything that it needs is open. It becomes nobody where it was root, and neither it nor
what it might start can gain privileges again (prctl(2), PR_SET_NO_NEW_PRIVS).
"""

from __future__ import annotations

import ctypes
import os

from cerne.errors import HostError

_NOBODY = 65534
_SET_NO_NEW_PRIVILEGES = 38


def enter() -> None:
    """Give up privileges, for this process and for good; while it has one thread.

    Raises:
        HostError: the kernel refused; a machine is not run with more than it needs.
    """
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise HostError(f"privileges cannot be given up: {os.strerror(ctypes.get_errno())}")
