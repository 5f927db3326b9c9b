"""Sends requests to one backend on one connection, in order and with a time limit.

A connection is not usable after an error: its owner makes another one.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence

from cerne.devices.vhost_user.messages import (
    FEATURE_PROTOCOL,
    HEADER_SIZE,
    BackendError,
    Inflight,
    ProtocolFeature,
    Request,
    decode_config,
    decode_inflight,
    decode_u64,
    decode_vring,
    encode,
    encode_config,
    encode_inflight,
    encode_regions,
    encode_u64,
    encode_vring,
    encode_vring_address,
    encode_vring_descriptor,
    reply_size,
)
from cerne.devices.virtio.handover import HandedQueue
from cerne.kvm.memory import GuestMemory
from cerne.units import counted

TURN = 3.0
"""Seconds that a backend has for all requests of one turn."""

_KNOWN = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.INFLIGHT_SHMFD
    | ProtocolFeature.RESET_DEVICE
)
_MOST_DESCRIPTORS = 8


class FrontEnd:
    """Our end of a connection, a `QueueBackend` after its features and memory are set.

    It belongs to one thread at a time. Each request raises `BackendError` if the backend is gone,
    breaks the protocol, refuses, or is too late.
    """

    def __init__(self, connection: socket.socket, patience: float = TURN) -> None:
        """Negotiate the features; the backend has `patience` seconds for it."""
        self._connection = connection
        self._deadline: float | None = None
        self.protocol = ProtocolFeature(0)
        """The features that both sides support."""
        self.most_queues: int | None = None
        """How many queues the backend can serve, if it says so."""
        with self.turn(patience):
            self.features = self._ask_number(Request.GET_FEATURES)
            """The virtio features that the backend offers."""
            if self.features & FEATURE_PROTOCOL:
                offered = self._ask_number(Request.GET_PROTOCOL_FEATURES)
                self.protocol = ProtocolFeature(offered & _KNOWN)
                self._send(Request.SET_PROTOCOL_FEATURES, encode_u64(self.protocol))
            if self.protocol & ProtocolFeature.MQ:
                self.most_queues = self._ask_number(Request.GET_QUEUE_NUM)
            self._tell(Request.SET_OWNER)

    @contextlib.contextmanager
    def turn(self, patience: float = TURN) -> Iterator[None]:
        """Limit the time for all requests of the block; an inner turn counts for the outer one."""
        outer, now = self._deadline, time.monotonic()
        self._deadline = now + patience if outer is None else outer
        try:
            yield
        finally:
            self._deadline = outer

    def config(self, size: int) -> bytes:
        """The first `size` bytes of the device's configuration."""
        if not self.protocol & ProtocolFeature.CONFIG:
            raise BackendError("the backend does not offer the device's configuration")
        return decode_config(self._ask(Request.GET_CONFIG, encode_config(size)), size)

    def set_features(self, features: int) -> None:
        """Set the virtio features that the driver took."""
        kept = self.features & FEATURE_PROTOCOL
        self._tell(Request.SET_FEATURES, encode_u64(features & self.features | kept))

    def set_memory(self, memory: GuestMemory) -> None:
        """Give the backend the guest's memory, which is in a memfd."""
        descriptors = [region.descriptor for region in memory.regions]
        if None in descriptors:
            raise ValueError(
                "the guest's memory is private to this process, and a backend needs shared memory"
            )
        shared = [each for each in descriptors if each is not None]
        self._tell(Request.SET_MEM_TABLE, encode_regions(memory.regions), shared)

    def new_inflight(self, queues: int, queue_size: int) -> tuple[Inflight, int] | None:
        """A file for the backend's notes of unfinished requests; None if it has no notes.

        The backend uses it after `set_inflight`.
        """
        if not self.protocol & ProtocolFeature.INFLIGHT_SHMFD:
            return None
        asked = Inflight(0, 0, queues, queue_size)
        self._send(Request.GET_INFLIGHT_FD, encode_inflight(asked))
        payload, descriptors = self._reply(Request.GET_INFLIGHT_FD)
        with contextlib.ExitStack() as undo:
            undo.callback(_close, descriptors)
            inflight = decode_inflight(payload, asked)
            if len(descriptors) != 1:
                raise BackendError(
                    f"the backend sent {counted(len(descriptors), 'file')} for its notes"
                )
            undo.pop_all()
        return inflight, descriptors[0]

    def set_inflight(self, inflight: Inflight, descriptor: int) -> None:
        """Give the backend its notes, new ones or those of a former backend."""
        self._tell(Request.SET_INFLIGHT_FD, encode_inflight(inflight), [descriptor])

    def start(self, queue: HandedQueue) -> None:
        """Let the backend serve a queue."""
        index = queue.number
        with self.turn():
            self._tell(Request.SET_VRING_NUM, encode_vring(index, queue.size))
            self._tell(Request.SET_VRING_BASE, encode_vring(index, queue.next_available))
            rings = (queue.descriptors, queue.driver, queue.device)
            self._tell(Request.SET_VRING_ADDR, encode_vring_address(index, *rings))
            self.set_call(index, queue.call)
            self._tell(Request.SET_VRING_KICK, encode_vring_descriptor(index), [queue.kick])
            if self.features & FEATURE_PROTOCOL:
                self._tell(Request.SET_VRING_ENABLE, encode_vring(index, 1))
            self._wait_until_taken()

    def stop(self, index: int) -> int:
        """Stop a queue; return the index in the driver's ring at which the backend stopped."""
        return decode_vring(
            Request.GET_VRING_BASE,
            self._ask(Request.GET_VRING_BASE, encode_vring(index, 0)),
            index,
        )

    def set_call(self, index: int, call: int) -> None:
        """Interrupt the guest by another eventfd."""
        self._tell(Request.SET_VRING_CALL, encode_vring_descriptor(index), [call])

    def reset(self) -> None:
        """Make the backend forget the driver, if it supports that; its queues are stopped."""
        if self.protocol & ProtocolFeature.RESET_DEVICE:
            self._tell(Request.RESET_DEVICE)

    def _wait_until_taken(self) -> None:
        """Without acknowledgements, an answer shows that the backend has read all messages."""
        if not self.protocol & ProtocolFeature.REPLY_ACK:
            self._ask_number(Request.GET_FEATURES)

    def _tell(
        self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()
    ) -> None:
        acknowledged = bool(self.protocol & ProtocolFeature.REPLY_ACK)
        with self.turn():
            self._send(request, payload, descriptors, need_reply=acknowledged)
            if not acknowledged:
                return
            answer, unwanted = self._reply(request)
            _close(unwanted)
        status = decode_u64(request, answer)
        if status != 0:
            raise BackendError(f"the backend refused {request.name}: {status:#x}")

    def _ask(self, request: Request, payload: bytes = b"") -> bytes:
        with self.turn():
            self._send(request, payload)
            answer, unwanted = self._reply(request)
        _close(unwanted)
        return answer

    def _ask_number(self, request: Request) -> int:
        return decode_u64(request, self._ask(request))

    def _send(
        self,
        request: Request,
        payload: bytes = b"",
        descriptors: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        message = encode(request, payload, need_reply=need_reply)
        passed = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []
        with self._limited(request):
            sent = self._connection.sendmsg([message], ancillary)
            self._connection.sendall(message[sent:])

    def _reply(self, request: Request) -> tuple[bytes, list[int]]:
        descriptors: list[int] = []
        try:
            header = self._receive(request, HEADER_SIZE, descriptors)
            payload = self._receive(request, reply_size(header, request), descriptors)
        except BackendError:
            _close(descriptors)
            raise
        return payload, descriptors

    def _receive(self, request: Request, size: int, descriptors: list[int]) -> bytes:
        data = b""
        while len(data) < size:
            with self._limited(request):
                piece, sent, flags, _ = socket.recv_fds(
                    self._connection, size - len(data), _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            descriptors += sent
            if flags & socket.MSG_CTRUNC:
                raise BackendError(
                    f"this process has no room for the descriptors of the answer to {request.name}"
                )
            if not piece:
                raise BackendError(f"the backend closed the connection at {request.name}")
            data += piece
        return data

    @contextlib.contextmanager
    def _limited(self, request: Request) -> Iterator[None]:
        """Limit one operation of the socket by the rest of the turn."""
        left = TURN if self._deadline is None else self._deadline - time.monotonic()
        try:
            self._connection.settimeout(max(left, 1e-3))
            yield
        except TimeoutError as error:
            raise BackendError(f"the backend does not answer {request.name}") from error
        except OSError as error:
            raise BackendError(
                f"the backend closed the connection at {request.name}: {error.strerror}"
            ) from error


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
