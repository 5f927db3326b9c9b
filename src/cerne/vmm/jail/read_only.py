"""Gives a program a file only to read, which it opens to write.

QEMU before 8.2 maps a file privately only if it may write to it. That is the memory of a saved
machine, which other machines use too. A private mapping needs no right to write, so the program
gets the file open to be read alone: a filter of its system calls asks (seccomp_unotify(2), Linux
5.9), and this process answers with its own descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_MAGIC = ord("!")
_NOTE = struct.Struct("<QII64x")
_ANSWER = struct.Struct("<QqiI")
_DESCRIPTOR = struct.Struct("<QIIII")
_CONTINUE = 1


def _request(directions: int, number: int, size: int) -> int:
    return directions << 30 | size << 16 | _MAGIC << 8 | number


_RECEIVE = _request(3, 0, _NOTE.size)
_SEND = _request(3, 1, _ANSWER.size)
_ADD_DESCRIPTOR = _request(1, 3, _DESCRIPTOR.size)


def answer(listener: int, file: int) -> None:
    """Answer the first call that asks with this open file, and have the kernel execute all others.

    It returns when no process is left that asks. If a program opens another file first, it gets
    none that it may write to: its mount is read-only in any case.
    """
    waiting = True
    while True:
        note = bytearray(_NOTE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, note)
            call = _NOTE.unpack(note)[0]
            if waiting:
                waiting = False
                wanted = bytearray(_DESCRIPTOR.pack(call, 0, file, 0, os.O_CLOEXEC))
                given = fcntl.ioctl(listener, _ADD_DESCRIPTOR, wanted)
                said = _ANSWER.pack(call, given, 0, 0)
            else:
                said = _ANSWER.pack(call, 0, 0, _CONTINUE)
            fcntl.ioctl(listener, _SEND, bytearray(said))
        except OSError as error:
            # The process that asked was killed or interrupted.
            if error.errno not in (errno.EINTR, errno.ENOENT):
                return
