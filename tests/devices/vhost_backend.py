"""A vhost-user backend in Python, as good as a test wants it: it serves a disk, or only answers."""

from __future__ import annotations

import array
import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.waiting import PATIENCE

from cerne.devices.vhost_user.messages import (
    FEATURE_PROTOCOL,
    HEADER_SIZE,
    ProtocolFeature,
    Request,
)
from cerne.devices.virtio.device import (
    FEATURE_EVENT_INDEX,
    FEATURE_INDIRECT,
    FEATURE_VERSION_1,
    VirtioDevice,
)
from cerne.devices.virtio.queue import Queue
from cerne.kvm.memory import Backing, GuestAddress, GuestMemory, MemoryRegion

FEATURES = FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_INDEX | FEATURE_PROTOCOL
PROTOCOL = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
)
REPLY, NEED_REPLY = 5, 8
_INFLIGHT = struct.Struct("<QQHH4x")


def reply(request: int, payload: bytes, flags: int = REPLY) -> bytes:
    """A reply as it should be, unless told otherwise."""
    return struct.pack("<III", request, flags, len(payload)) + payload


@dataclass
class _Ring:
    """What was said of one queue."""

    size: int = 0
    base: int = 0
    rings: tuple[int, int, int] = (0, 0, 0)
    kick: int = -1
    call: int = -1
    enabled: bool = False
    queue: Queue | None = None


@dataclass
class VhostBackend:
    """Serves one connection in a thread, until it is told to die.

    `misbehave` may give the bytes that are answered to a message instead: none for none at all.
    """

    device: VirtioDevice | None = None
    """What serves the queues; nobody, where there is none."""
    features: int = FEATURES
    protocol: int = PROTOCOL
    queues: int = 4
    config: bytes = bytes(range(60))
    misbehave: Callable[[int, bytes], bytes | None] = lambda request, payload: None
    said: list[int] = field(default_factory=list)
    """The messages that came."""
    inflight: bytes = b""
    """The notes that it was given, when it was given any."""
    connection: socket.socket | None = None
    """One that a front end has made; otherwise `connect` gives its end of a new one."""
    taken: int = 0
    """How many kicks it has had."""

    def __post_init__(self) -> None:
        if self.connection is None:
            self.link, self._connection = socket.socketpair()
        else:
            self._connection = self.connection
        self._memory: GuestMemory | None = None
        self._driver_features = 0
        self._rings = [_Ring() for _ in range(8)]
        self._asked, self._dying = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def connect(self) -> socket.socket:
        """The front end's side, which is the caller's from now on."""
        return self.link

    def die(self) -> None:
        """End, as a process that is killed does: the connection breaks."""
        self._asked.close()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        with contextlib.suppress(OSError), self._connection, self._dying:
            while self._turn():
                pass
        for ring in self._rings:
            _close(ring.kick, ring.call)
        self._rings.clear()
        if self._memory is not None:
            self._memory.close()

    def _turn(self) -> bool:
        kicks = {ring.kick: index for index, ring in enumerate(self._rings) if ring.queue}
        control, death = self._connection.fileno(), self._dying.fileno()
        ready, _, _ = select.select([control, death, *kicks], [], [])
        if death in ready:
            return False
        if control in ready:
            return self._take_message()
        for kick in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(kick)
                self.taken += 1
                self._serve(kicks[kick])
        return True

    def _serve(self, index: int) -> None:
        if self.device is not None and self._rings[index].enabled:
            with self.device.lock:
                self.device.process(index)

    def _take_message(self) -> bool:
        header, descriptors, _, _ = socket.recv_fds(self._connection, HEADER_SIZE, 8)
        if len(header) < HEADER_SIZE:
            return False
        request, flags, size = struct.unpack("<III", header)
        payload = b""
        while len(payload) < size:
            piece = self._connection.recv(size - len(payload))
            if not piece:
                return False
            payload += piece
        self.said.append(request)
        instead = self.misbehave(request, payload)
        if instead is not None:
            self._connection.sendall(instead)
            return True
        answer = self._obey(request, payload, descriptors)
        if answer is None and flags & NEED_REPLY:
            answer = bytes(8)
        if answer is not None:
            self._connection.sendall(reply(request, answer))
        return True

    def _obey(self, request: int, payload: bytes, descriptors: Sequence[int]) -> bytes | None:
        match request:
            case Request.GET_FEATURES:
                return struct.pack("<Q", self.features)
            case Request.GET_PROTOCOL_FEATURES:
                return struct.pack("<Q", self.protocol)
            case Request.GET_QUEUE_NUM:
                return struct.pack("<Q", self.queues)
            case Request.GET_CONFIG:
                size = struct.unpack_from("<I", payload, 4)[0]
                return payload[:12] + self.config[:size].ljust(size, b"\0")
            case Request.SET_FEATURES:
                self._driver_features = struct.unpack("<Q", payload)[0]
            case Request.SET_MEM_TABLE:
                self._memory = _mapped(payload, descriptors)
            case Request.GET_INFLIGHT_FD:
                self._send_notes(payload)
            case Request.SET_INFLIGHT_FD:
                size, offset, *_ = _INFLIGHT.unpack(payload)
                self.inflight = os.pread(descriptors[0], size, offset)
                os.pwrite(descriptors[0], b"noted", offset)
                os.close(descriptors[0])
            case _:
                return self._obey_ring(request, payload, descriptors)
        return None

    def _obey_ring(self, request: int, payload: bytes, descriptors: Sequence[int]) -> bytes | None:
        index, value = struct.unpack_from("<II", payload.ljust(8, b"\0"))
        ring = self._rings[index & 7]
        match request:
            case Request.SET_VRING_NUM:
                ring.size = value
            case Request.SET_VRING_BASE:
                ring.base = value
            case Request.SET_VRING_ADDR:
                descriptor_table, used, available = struct.unpack_from("<QQQ", payload, 8)
                ring.rings = (descriptor_table, available, used)
            case Request.SET_VRING_CALL:
                _close(ring.call)
                ring.call = descriptors[0]
            case Request.SET_VRING_KICK:
                ring.kick = descriptors[0]
                self._start(ring)
            case Request.SET_VRING_ENABLE:
                ring.enabled = bool(value)
            case Request.GET_VRING_BASE:
                stopped = ring.queue.next_available if ring.queue else ring.base
                _close(ring.kick, ring.call)
                self._rings[index] = _Ring()
                return struct.pack("<II", index, stopped)
        return None

    def _start(self, ring: _Ring) -> None:
        assert self._memory is not None
        queue = Queue(self._memory, 128)
        queue.size = ring.size
        queue.descriptors, queue.driver, queue.device = ring.rings
        queue.event_index = bool(self._driver_features & FEATURE_EVENT_INDEX)
        queue.indirect = bool(self._driver_features & FEATURE_INDIRECT)
        queue.ready = True
        queue.take_back(ring.base)
        ring.queue = queue
        if self.device is not None:
            queues = [each.queue or Queue(self._memory, 128) for each in self._rings]
            with self.device.lock:
                self.device.activate(queues, self._driver_features, self._call)

    def _call(self, queue: Queue) -> None:
        if queue.should_notify():
            (ring,) = (each for each in self._rings if each.queue is queue)
            os.eventfd_write(ring.call, 1)

    def _send_notes(self, payload: bytes) -> None:
        _, _, queues, size = _INFLIGHT.unpack(payload)
        descriptor = os.memfd_create("notes")
        os.truncate(descriptor, 4096)
        answer = _INFLIGHT.pack(4096, 0, queues, size)
        message = reply(Request.GET_INFLIGHT_FD, answer)
        passed = array.array("i", [descriptor])
        self._connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        os.close(descriptor)


def _mapped(payload: bytes, descriptors: Sequence[int]) -> GuestMemory:
    count = struct.unpack_from("<I", payload)[0]
    regions = []
    for number, descriptor in zip(range(count), descriptors, strict=True):
        start, size, user, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * number)
        assert user == start
        mapping = mmap.mmap(descriptor, size, offset=offset)
        os.close(descriptor)
        regions.append(
            MemoryRegion(
                GuestAddress(start), size, memoryview(mapping), mapping, 0, Backing.ANONYMOUS
            )
        )
    return GuestMemory(regions)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
