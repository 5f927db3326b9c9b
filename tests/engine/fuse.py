"""A guest's requests to a file server (virtio-fs, FUSE 7.31; linux/fuse.h), written by hand."""

from __future__ import annotations

import os
import select
import struct
from functools import partial

from tests.devices.queue_driver import Buffer
from tests.devices.test_vhost_user import DATA, Connectable, Served

from cerne.devices.vhost_user.device import VhostUserFs
from cerne.kvm.memory import GuestMemory

ROOT = 1
"""The node of the directory."""
MODE, OWNERS = 1, 6
"""What SETATTR changes."""
_HEADER, _ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_REQUESTS = 1
_LARGEST = 4096


class Refused(Exception):
    """The server refused a request, with this errno."""


class Files:
    """A guest that has a directory of the host, as its root."""

    def __init__(self, memory: GuestMemory, backend: Connectable, tag: str) -> None:
        self.served = Served(memory, backend, partial(VhostUserFs, tag=tag, patience=30))
        self.served.start()
        self._ask(26, 0, struct.pack("<IIII", 7, 31, 0, 0))

    def look_up(self, name: str) -> int:
        """The node of a name in the directory."""
        (node,) = struct.unpack_from("<Q", self._ask(1, ROOT, _text(name)))
        return int(node)

    def create(self, name: str, mode: int) -> int:
        """Make a file; its node."""
        wanted = struct.pack("<IIII", os.O_RDWR | os.O_CREAT, mode, 0, 0)
        (node,) = struct.unpack_from("<Q", self._ask(35, ROOT, wanted + _text(name)))
        return int(node)

    def make_node(self, name: str, mode: int, device: int = 0) -> None:
        """Make a device or a file."""
        self._ask(8, ROOT, struct.pack("<IIII", mode, device, 0, 0) + _text(name))

    def set(self, node: int, valid: int, mode: int = 0, user: int = 0, group: int = 0) -> None:
        """Change a file's mode or owners."""
        numbers = struct.pack(
            "<II6QIIIIIIII", valid, 0, *6 * (0,), 0, 0, 0, mode, 0, user, group, 0
        )
        self._ask(4, node, numbers)

    def write(self, node: int, data: bytes) -> None:
        """Open a file, and write to its beginning."""
        (handle,) = struct.unpack_from("<Q", self._ask(14, node, struct.pack("<II", os.O_RDWR, 0)))
        self._ask(16, node, struct.pack("<QQIIQII", handle, 0, len(data), 0, 0, 0, 0) + data)

    def _ask(self, operation: int, node: int, body: bytes) -> bytes:
        header = _HEADER.pack(_HEADER.size + len(body), operation, 1, node, 0, 0, 0, 0, 0)
        served = self.served
        served.memory.write(DATA, header + body)
        room = Buffer(DATA + _LARGEST, _LARGEST, write=True)
        served.guest.queues[_REQUESTS].add([Buffer(DATA, len(header + body)), room])
        os.eventfd_write(served.bells[_REQUESTS], 1)
        call = served.guest.routes.calls[_REQUESTS + 1]
        while not served.guest.queues[_REQUESTS].take():
            assert select.select([call], [], [], 20)[0]
            os.eventfd_read(call)
        size, error, _ = _ANSWER.unpack(served.memory.read(DATA + _LARGEST, _ANSWER.size))
        if error:
            raise Refused(-error)
        return bytes(served.memory.read(DATA + _LARGEST + _ANSWER.size, size - _ANSWER.size))


def _text(name: str) -> bytes:
    return name.encode() + b"\0"
