"""Devices that a vhost-user backend serves: what it is told, and what it may do to us."""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer
from tests.devices.vhost_backend import FEATURES, PROTOCOL, REPLY, VhostBackend, reply
from tests.waiting import PATIENCE, eventually

from cerne.devices.block.raw import RawDisk
from cerne.devices.vhost_user import device as devices
from cerne.devices.vhost_user import front_end, messages
from cerne.devices.vhost_user.device import (
    VhostUserBlock,
    VhostUserDevice,
    VhostUserFs,
    VhostUserNet,
)
from cerne.devices.vhost_user.messages import BackendError, Inflight, ProtocolFeature, Request
from cerne.devices.virtio.block import BlockDevice
from cerne.devices.virtio.device import FEATURE_EVENT_INDEX
from cerne.devices.virtio.transport import ISR_CONFIG
from cerne.errors import InputError
from cerne.kvm.memory import GuestAddress, GuestMemory

DATA = 0x80000
MAC = bytes.fromhex("525400123456")
_SECTORS = 128


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds that a backend has to answer: few where it answers nothing."""
    kind = request.node.callspec.params.get("nonsense") if hasattr(request.node, "callspec") else ""
    seconds = 1.0 if kind in ("silence", "half an answer") else PATIENCE
    monkeypatch.setattr(front_end.FrontEnd.turn, "__defaults__", (seconds,))
    return seconds


@pytest.fixture
def disk() -> Iterator[int]:
    descriptor = os.memfd_create("disk")
    os.truncate(descriptor, 512 * _SECTORS)
    yield descriptor
    os.close(descriptor)


class Connectable(Protocol):
    """A backend to connect to."""

    def connect(self) -> socket.socket:
        """A connection to it."""

    def die(self) -> None:
        """End it without warning."""


class Served:
    """A guest whose device a backend serves, and another backend after that one."""

    def __init__(
        self,
        memory: GuestMemory,
        backend: Connectable,
        make: Callable[[socket.socket], VhostUserDevice],
    ) -> None:
        self.memory = memory
        self.backend = backend
        self.losses: list[str] = []
        self.device = make(backend.connect())
        self.device.on_loss = lambda error: self.losses.append(error.message)
        self._stack = ExitStack()
        count = len(self.device.queue_sizes)
        self.bells = [self._eventfd() for _ in range(count)]
        self.guest = Guest(self.device, memory, self.bells)
        self.guest.routes.calls = {vector: self._eventfd() for vector in range(count + 2)}

    def _eventfd(self) -> int:
        descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self._stack.callback(os.close, descriptor)
        return descriptor

    def start(self) -> None:
        """Let the driver begin; it wants an interrupt for all that is answered."""
        self.guest.start(refuse=FEATURE_EVENT_INDEX)

    def kill(self) -> None:
        """Let the backend die, and the device see it."""
        self.backend.die()
        eventually(self._seen_to_be_dead)

    def _seen_to_be_dead(self) -> bool:
        self.device.check()
        return not self.device.connected

    def revive(self, backend: Connectable) -> None:
        """Let another one take its place."""
        self.backend = backend
        self.device.reconnect(backend.connect())

    def offer(self, kind: int, sector: int, data: bytes = b"", room: int = 0) -> None:
        """Offer a request to the first queue, whose doorbell rings."""
        self.memory.write(DATA, struct.pack("<IIQ", kind, 0, sector) + data)
        buffers = [Buffer(DATA, 16 + len(data)), Buffer(DATA + 0x1000, room + 1, write=True)]
        self.guest.queues[0].add(buffers)
        os.eventfd_write(self.bells[0], 1)

    def answer(self, room: int = 0) -> tuple[int, bytes]:
        """The status and data of the next request that is answered."""
        call = self.guest.routes.calls[1]
        taken = self.guest.queues[0].take()
        while not taken:
            assert select.select([call], [], [], 20)[0]
            os.eventfd_read(call)
            taken = self.guest.queues[0].take()
        said = self.memory.read(DATA + 0x1000, room + 1)
        return said[-1], said[:-1]

    def close(self) -> None:
        self.backend.die()
        self.device.close()
        self._stack.close()


def _disk_backend(disk: int, **how: object) -> VhostBackend:
    config = struct.pack("<Q", _SECTORS) + bytes(52)
    values: dict[str, object] = {"device": BlockDevice(RawDisk(disk)), "config": config}
    return VhostBackend(**(values | how))  # type: ignore[arg-type]


@pytest.fixture
def block(memory: GuestMemory, disk: int) -> Iterator[Served]:
    served = Served(memory, _disk_backend(disk), lambda link: VhostUserBlock(link, 2))
    served.start()
    yield served
    served.close()


def _python(served: Served) -> VhostBackend:
    """Its backend, which is of our own."""
    assert isinstance(served.backend, VhostBackend)
    return served.backend


def test_a_disk_is_served_by_its_backend_alone(block: Served, disk: int) -> None:
    block.offer(1, 5, b"x" * 512)
    assert block.answer() == (0, b"")
    assert os.pread(disk, 512, 5 * 512) == b"x" * 512
    block.offer(0, 5, room=512)
    assert block.answer(512) == (0, b"x" * 512)
    assert block.guest.routes.triggered == []


def test_a_disk_is_as_its_backend_says_with_our_queues(block: Served) -> None:
    assert block.guest.read(0x2000, 8) == _SECTORS
    assert block.guest.read(0x2000 + 34, 2) == 2
    assert len(block.device.queue_sizes) == 2


def test_a_backend_is_told_all_in_order(block: Served) -> None:
    first = _python(block).said[:6]
    assert first == [
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.SET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.SET_OWNER,
        Request.GET_CONFIG,
    ]
    told = _python(block).said[6:]
    assert told[:4] == [
        Request.SET_FEATURES,
        Request.GET_INFLIGHT_FD,
        Request.SET_INFLIGHT_FD,
        Request.SET_MEM_TABLE,
    ]
    ring = [
        Request.SET_VRING_NUM,
        Request.SET_VRING_BASE,
        Request.SET_VRING_ADDR,
        Request.SET_VRING_CALL,
        Request.SET_VRING_KICK,
        Request.SET_VRING_ENABLE,
    ]
    assert told[4:] == ring * 2


def test_a_guest_goes_on_with_another_backend(block: Served, disk: int) -> None:
    block.offer(1, 1, b"1" * 512)
    assert block.answer() == (0, b"")
    block.kill()
    assert block.losses == ["the backend closed the connection"]
    block.offer(1, 2, b"2" * 512)
    block.revive(_disk_backend(disk))
    assert block.answer() == (0, b"")
    # The new one has the notes of the old one, and has begun where that had ended.
    assert _python(block).inflight.startswith(b"noted")
    assert block.guest.transport.queues[0].next_available == 1
    block.offer(0, 2, room=512)
    assert block.answer(512) == (0, b"2" * 512)


def test_a_guest_starts_while_its_backend_is_away(memory: GuestMemory, disk: int) -> None:
    served = Served(memory, _disk_backend(disk), lambda link: VhostUserBlock(link, 1))
    served.kill()
    served.start()
    served.offer(0, 0, room=512)
    served.revive(_disk_backend(disk))
    assert served.answer(512) == (0, bytes(512))
    served.close()


def test_a_reset_takes_the_queues_back(block: Served) -> None:
    block.offer(0, 0, room=512)
    assert block.answer(512) == (0, bytes(512))
    del _python(block).said[:]
    block.guest.write(20, 1, 0)
    taken = [Request.GET_VRING_BASE] * 2
    assert _python(block).said == [*taken, Request.RESET_DEVICE]
    block.guest.queues.clear()
    block.memory.write(0x1000, bytes(0x4000))
    block.start()
    block.offer(0, 0, room=512)
    assert block.answer(512) == (0, bytes(512))
    assert not _python(block).inflight.startswith(b"noted")


def test_one_ring_is_reset_and_used_again(block: Served) -> None:
    block.offer(0, 0, room=512)
    block.answer(512)
    del _python(block).said[:]
    block.guest.write(22, 2, 0)
    block.guest.write(58, 2, 1)
    assert _python(block).said == [Request.GET_VRING_BASE]


def test_another_vector_reaches_the_backend(block: Served) -> None:
    block.guest.write(22, 2, 0)
    block.guest.write(26, 2, 2)
    assert _python(block).said[-1] == Request.SET_VRING_CALL
    block.offer(0, 0, room=512)
    assert select.select([block.guest.routes.calls[2]], [], [], 20)[0]


def test_another_disk_is_not_taken_for_the_first(block: Served, disk: int) -> None:
    block.kill()
    other = _disk_backend(disk, config=bytes(60))
    with pytest.raises(BackendError, match="another disk"):
        block.revive(other)
    lesser = _disk_backend(disk, features=FEATURES & ~(1 << 28))
    with pytest.raises(BackendError, match="lacks the features 0x10000000"):
        block.revive(lesser)
    block.offer(0, 0, room=512)
    block.revive(_disk_backend(disk))
    assert block.answer(512) == (0, bytes(512))


def test_a_backend_with_no_protocol_features_serves_a_network_card(memory: GuestMemory) -> None:
    backend = VhostBackend(features=FEATURES & ~(1 << 30))
    served = Served(memory, backend, lambda link: VhostUserNet(link, MAC))
    served.start()
    assert Request.SET_VRING_ENABLE not in backend.said
    assert Request.SET_VRING_KICK in backend.said
    assert served.device.config() == MAC + b"\1\0"
    served.kill()
    assert served.device.config() == MAC + b"\0\0"
    assert served.guest.read(0x1000, 1) & ISR_CONFIG
    served.close()


def test_a_directory_has_its_tag(memory: GuestMemory) -> None:
    served = Served(memory, VhostBackend(), lambda link: VhostUserFs(link, "share0"))
    assert served.device.config() == b"share0".ljust(36, b"\0") + b"\1\0\0\0"
    served.close()


@pytest.mark.parametrize("tag", ["", "x" * 37])
def test_a_tag_that_cannot_be_is_refused(tag: str) -> None:
    with pytest.raises(InputError):
        VhostUserFs(socket.socketpair()[0], tag)


_NONSENSE: dict[str, Callable[[int], bytes]] = {
    "another message": lambda request: reply(99, bytes(8)),
    "no reply": lambda request: reply(request, bytes(8), flags=1),
    "another version": lambda request: reply(request, bytes(8), flags=6),
    "too short": lambda request: reply(request, bytes(7)),
    "too long": lambda request: reply(request, bytes(9)),
    "endless": lambda request: struct.pack("<III", request, REPLY, 0xFFFFFFFF),
    "half an answer": lambda request: reply(request, bytes(8))[:15],
    "refusal": lambda request: reply(request, b"\1" + bytes(7)),
    "silence": lambda request: b"",
}


@pytest.mark.parametrize("nonsense", sorted(_NONSENSE.keys() - {"refusal"}))
@pytest.mark.parametrize("request_", [Request.GET_FEATURES, Request.GET_QUEUE_NUM])
def test_a_backend_that_talks_nonsense_is_refused(
    request_: Request, nonsense: str, patience: float
) -> None:
    said = _NONSENSE[nonsense](request_)
    backend = VhostBackend(misbehave=lambda asked, _: said if asked == request_ else None)
    with pytest.raises(BackendError, match=request_.name):
        VhostUserBlock(backend.link, 1, patience)
    backend.link.close()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"features": FEATURES & ~(1 << 32)}, "virtio 1"),
        ({"protocol": PROTOCOL & ~ProtocolFeature.CONFIG}, "configuration"),
        ({"queues": 0}, "no queue"),
    ],
)
def test_a_backend_that_has_too_little_is_refused(told: dict[str, int], words: str) -> None:
    backend = VhostBackend(**told)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=words):
        VhostUserBlock(backend.link, 1)
    backend.link.close()


_LATE = [
    Request.SET_FEATURES,
    Request.GET_INFLIGHT_FD,
    Request.SET_MEM_TABLE,
    Request.SET_VRING_KICK,
    Request.SET_VRING_ENABLE,
]


@pytest.mark.parametrize("asked", _LATE)
@pytest.mark.parametrize("nonsense", ["refusal", "silence", "too short"])
def test_a_guest_outlives_a_backend_that_fails_it(
    memory: GuestMemory, disk: int, asked: Request, nonsense: str
) -> None:
    said = _NONSENSE[nonsense](asked)
    bad = _disk_backend(disk, misbehave=lambda request, _: said if request == asked else None)
    served = Served(memory, bad, lambda link: VhostUserBlock(link, 1))
    served.start()
    assert not served.device.connected
    (loss,) = served.losses
    assert asked.name in loss
    bad.die()
    served.offer(0, 0, room=512)
    served.revive(_disk_backend(disk))
    assert served.answer(512) == (0, bytes(512))
    served.close()


def test_a_backend_that_speaks_unasked_is_left(block: Served) -> None:
    _python(block)._connection.send(b"hello")
    block.device.check()
    assert block.losses == ["the backend sent a message without a request"]
    block.device.check()
    assert len(block.losses) == 1


def test_a_backend_that_is_there_is_kept(block: Served) -> None:
    block.device.check()
    assert block.device.connected


def test_memory_of_one_process_is_not_given_away() -> None:
    backend = VhostBackend()
    front = front_end.FrontEnd(backend.link)
    with (
        GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory,
        pytest.raises(ValueError, match="private to this process"),
    ):
        front.set_memory(memory)
    backend.link.close()


@given(st.binary(min_size=12, max_size=12), st.sampled_from(list(Request)))
def test_any_header_is_a_reply_or_an_error(header: bytes, request: Request) -> None:
    try:
        size = messages.reply_size(header, request)
    except BackendError:
        return
    assert 0 <= size <= messages.LARGEST_PAYLOAD
    assert header[:4] == request.to_bytes(4, "little")


_NOTES = struct.Struct("<QQHH")


@given(st.binary(max_size=80) | st.builds(lambda size: _NOTES.pack(size, 0, 1, 128), st.just(1)))
def test_any_payload_is_what_was_asked_or_an_error(payload: bytes) -> None:
    asked = Inflight(0, 0, 1, 128)
    for decode in (
        lambda: messages.decode_u64(Request.GET_FEATURES, payload),
        lambda: messages.decode_vring(Request.GET_VRING_BASE, payload, 1),
        lambda: messages.decode_config(payload, 60),
        lambda: messages.decode_inflight(payload, asked),
    ):
        try:
            decode()
        except BackendError as error:
            assert error.message


def test_messages_are_as_the_specification_has_them() -> None:
    assert messages.encode(Request.SET_OWNER, need_reply=True) == struct.pack("<III", 3, 9, 0)
    assert messages.encode_vring_address(1, 2, 3, 4) == struct.pack("<IIQQQQ", 1, 0, 2, 4, 3, 0)
    assert messages.encode_config(2) == struct.pack("<III", 0, 2, 0) + bytes(2)
    assert devices.QUEUE_SIZE == 128
