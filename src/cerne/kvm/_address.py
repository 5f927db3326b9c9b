"""Where a buffer of this process lies, for the structures in which the kernel wants an address.

The only place that turns a buffer into a number. An address is good for as long as the buffer's
owner lives and no longer; whoever asks for one says, where it asks, who that owner is.
"""

from __future__ import annotations

import ctypes
from mmap import mmap


def address_of(buffer: bytearray | memoryview | mmap) -> int:
    """The address of a writable buffer's first byte."""
    # from_buffer takes a hold of the buffer that ends with this expression.
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
