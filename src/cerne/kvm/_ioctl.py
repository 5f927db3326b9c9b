"""System calls with the kernel's own arguments: ioctl(2) and tgkill(2).

fcntl.ioctl takes no unsigned number of more than 31 bits, and the standard library signals no
single thread without the risk that it has ended; so both go to the C library here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from enum import IntEnum

from cerne.errors import KvmError
from cerne.kvm._address import address_of

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_long, ctypes.c_long)
_libc.syscall.restype = ctypes.c_long

_SYS_TGKILL = 234

_HINTS = {
    errno.ENOMEM: "the host is short of memory: give the machine less, or stop another one",
    errno.EMFILE: "this process has too many open files: raise it with 'ulimit -n 65536'",
    errno.ENFILE: "the host has too many open files: raise the sysctl fs.file-max",
    errno.EBUSY: "another hypervisor may hold the processor (VirtualBox, VMware): stop it",
    errno.EPERM: "a container or security module forbids it: allow /dev/kvm there",
}


def ioctl(
    descriptor: int,
    operation: IntEnum,
    argument: int | ctypes.Structure | ctypes.c_uint64 | bytearray = 0,
) -> int:
    """Call the kernel; return its answer, which is not negative.

    The kernel keeps no address beyond the call, during which the caller holds the argument.

    Raises:
        KvmError: the kernel refused; the error keeps its errno.
    """
    value = argument if isinstance(argument, int) else _address(argument)
    while True:
        answer: int = _libc.ioctl(descriptor, operation, value)
        if answer >= 0:
            return answer
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise KvmError(operation.name, number, hint=_HINTS.get(number, ""))


def signal_thread(thread: int, signal_number: signal.Signals) -> None:
    """Signal one thread of this process, by its kernel ID; one that has ended causes no error."""
    _libc.syscall(_SYS_TGKILL, os.getpid(), thread, signal_number)


def _address(argument: ctypes.Structure | ctypes.c_uint64 | bytearray) -> int:
    if isinstance(argument, bytearray):
        return address_of(argument)
    return ctypes.addressof(argument)
