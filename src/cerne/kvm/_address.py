"""The address of a buffer of this process, for the kernel's structures.

Only this module turns a buffer into a number. An address is valid while the buffer's owner exists;
a comment at each call names the owner.
"""

from __future__ import annotations

import ctypes
from mmap import mmap


def address_of(buffer: bytearray | memoryview | mmap) -> int:
    """The address of a writable buffer's first byte."""
    # from_buffer takes a hold of the buffer that ends with this expression.
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
