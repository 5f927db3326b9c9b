"""The network card, on a socket as passt has it and on a tap of the kernel."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer
from tests.taps import GUEST_ADDRESS, HOST_ADDRESS, TAP, Namespace
from tests.waiting import PATIENCE

from cerne.devices.limiter import Limiter
from cerne.devices.virtio.net.control import Control
from cerne.devices.virtio.net.device import NetDevice, NetLimits
from cerne.devices.virtio.net.header import (
    HEADER_SIZE,
    LARGEST_FRAME,
    Feature,
    checked_header,
)
from cerne.devices.virtio.net.stream import StreamLink
from cerne.devices.virtio.net.tap import TapLink
from cerne.errors import DamagedError, InputError
from cerne.kvm.memory import GuestAddress, GuestMemory

DATA = 0x80000
BUFFERS = 0x40000
MAC = bytes.fromhex("525400123456")
OFFLOADS = (
    Feature.CSUM
    | Feature.HOST_TSO4
    | Feature.HOST_TSO6
    | Feature.HOST_ECN
    | Feature.GUEST_CSUM
    | Feature.GUEST_TSO4
    | Feature.GUEST_TSO6
    | Feature.GUEST_ECN
)
ALL = ~0
_HEADER = struct.Struct("<BBHHHHH")


# --- headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "frame_size", "passed"),
    [
        ((0, 0, 0, 0, 0, 0, 0), 60, (0, 0, 0, 0, 0, 0, 0)),
        # What means nothing to the other end does not get there.
        ((0xFE, 0, 9, 9, 9, 9, 9), 60, (0, 0, 0, 0, 0, 0, 0)),
        ((1, 0, 9, 9, 34, 16, 9), 60, (1, 0, 0, 0, 34, 16, 0)),
        ((1, 1, 54, 1448, 34, 16, 0), 60000, (1, 1, 54, 1448, 34, 16, 0)),
        ((1, 0x81, 54, 1448, 34, 16, 0), 60000, (1, 0x81, 54, 1448, 34, 16, 0)),
        ((1, 4, 74, 1428, 54, 16, 0), 60000, (1, 4, 74, 1428, 54, 16, 0)),
        ((1, 5, 42, 1400, 34, 6, 0), 60000, (1, 5, 42, 1400, 34, 6, 0)),
        # Frames that are none.
        ((0, 0, 0, 0, 0, 0, 0), 13, None),
        ((0, 0, 0, 0, 0, 0, 0), LARGEST_FRAME + 1, None),
        # A checksum that is not in the frame, segments without one, no segments that there are.
        ((1, 0, 0, 0, 34, 25, 0), 60, None),
        ((1, 0, 0, 0, 0xFFFF, 0xFFFF, 0), 60, None),
        ((0, 1, 54, 1448, 34, 16, 0), 60000, None),
        ((1, 3, 42, 1400, 34, 6, 0), 60000, None),
        ((1, 0x85, 42, 1400, 34, 6, 0), 60000, None),
        ((1, 0x80, 54, 1448, 34, 16, 0), 60000, None),
        ((1, 7, 54, 1448, 34, 16, 0), 60000, None),
        # Segments of no size, of one that has another meaning, and headers longer than the frame.
        ((1, 1, 54, 0, 34, 16, 0), 60000, None),
        ((1, 1, 54, 7, 34, 16, 0), 60000, None),
        ((1, 1, 54, 0xFFFF, 34, 16, 0), 60000, None),
        ((1, 1, 61, 1448, 34, 16, 0), 60, None),
    ],
)
def test_what_a_header_may_say(
    header: tuple[int, ...], frame_size: int, passed: tuple[int, ...] | None
) -> None:
    wanted = None if passed is None else _HEADER.pack(*passed)
    assert checked_header(_HEADER.pack(*header), frame_size, ALL) == wanted


@pytest.mark.parametrize(
    ("header", "needed"),
    [
        ((1, 0, 0, 0, 34, 16, 0), Feature.CSUM),
        ((1, 1, 54, 1448, 34, 16, 0), Feature.HOST_TSO4),
        ((1, 4, 54, 1448, 34, 16, 0), Feature.HOST_TSO6),
        ((1, 0x81, 54, 1448, 34, 16, 0), Feature.HOST_ECN),
        ((1, 5, 54, 1448, 34, 16, 0), Feature.HOST_USO),
    ],
)
def test_nothing_is_left_undone_that_was_not_negotiated(
    header: tuple[int, ...], needed: Feature
) -> None:
    packed = _HEADER.pack(*header)
    assert checked_header(packed, 60000, ALL) == packed
    assert checked_header(packed, 60000, ALL & ~needed) is None


@given(
    header=st.binary(max_size=16),
    frame_size=st.integers(0, 70000),
    features=st.integers(0, (1 << 64) - 1),
)
def test_no_header_gets_through_that_breaks_a_rule(
    header: bytes, frame_size: int, features: int
) -> None:
    passed = checked_header(header, frame_size, features)
    if passed is None:
        return
    flags, kind, length, segment, start, offset, count = _HEADER.unpack(passed)
    assert 14 <= frame_size <= LARGEST_FRAME
    assert (flags in (0, 1), count) == (True, 0)
    assert not flags or (features & Feature.CSUM and start + offset + 2 <= frame_size)
    assert not kind or (flags == 1 and 8 <= segment < 0xFFFF and length <= frame_size)
    assert kind & 0x7F in (0, 1, 4, 5)


# --- the control queue -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "obeyed"),
    [
        (b"\0\0\1", True),
        (b"\0\1\0", True),
        (b"\0\2\0", False),
        (b"\0\0", False),
        (b"\1\0" + bytes(8), True),
        (b"\1\0\1\0\0\0" + bytes(6) + bytes(4), True),
        (b"\1\0\1\0\0\0" + bytes(5), False),
        (b"\1\0\xff\xff\xff\xff" + bytes(100), False),
        (b"\1\0" + bytes(9), False),
        (b"\1\1" + MAC, True),
        (b"\1\1" + b"\xff" * 6, False),
        (b"\1\1" + MAC[:5], False),
        (b"\2\0\x64\0", True),
        (b"\2\1\x64\0", True),
        (b"\2\2\x64\0", False),
        (b"\2\0\0\x10", False),
        (b"\5\0\x02" + bytes(7), True),
        (b"\5\0\x01" + bytes(7), False),
        (b"\5\0\x02", False),
        (b"\4\0\1\0", False),
        (b"\1", False),
        (b"", False),
    ],
)
def test_commands_are_obeyed_or_refused(command: bytes, obeyed: bool) -> None:
    control = Control(ALL, lambda mac: None, lambda offloads: None)
    assert control.obey(command) is obeyed
    if obeyed:
        assert not Control(0, lambda mac: None, lambda offloads: None).obey(command)


@given(st.binary(max_size=200))
def test_any_command_has_an_answer(command: bytes) -> None:
    said: list[object] = []
    Control(ALL, said.append, said.append).obey(command)
    assert len(said) <= 1


# --- by a socket -------------------------------------------------------------------------------


@pytest.fixture
def cable() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A link's socket and the one at its other end."""
    near, far = socket.socketpair()
    far.settimeout(PATIENCE)
    with near, far:
        yield near, far


Cable = tuple[socket.socket, socket.socket]


def framed(*frames: bytes) -> bytes:
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


def test_frames_go_both_ways_until_the_link_is_lost(memory: GuestMemory, cable: Cable) -> None:
    near, far = cable
    device = NetDevice(MAC, StreamLink(near))
    guest = Guest(device, memory)
    guest.start()
    receive, transmit, _ = guest.queues
    memory.write(DATA, bytes(12) + b"a frame to the world")
    transmit.add([Buffer(DATA, 12), Buffer(DATA + 12, 20)])
    guest.kick(1)
    assert far.recv(100) == framed(b"a frame to the world")
    far.sendall(framed(b"one", b"two")[:-1])
    receive.add([Buffer(DATA, 64, write=True)])
    device.receive()
    assert (receive.take(), device.wants_read) == ([(0, 15)], False)
    # Nobody need look at its checksum, and it has one buffer.
    assert memory.read(DATA, 15) == b"\2" + bytes(9) + b"\1\0one"
    far.sendall(b"o")
    receive.add([Buffer(DATA, 64, write=True)])
    guest.kick(0)
    assert (receive.take(), device.wants_read) == ([(1, 15)], False)
    receive.add([Buffer(DATA, 64, write=True)])
    guest.kick(0)
    far.close()
    assert (device.wants_read, guest.read(0x2006, 2)) == (True, 1)
    device.receive()
    assert (guest.read(0x2006, 2), guest.read(0x1000, 1)) == (0, 3)
    assert (device.received, device.sent) == (len(b"one") + len(b"two"), 20)
    transmit.add([Buffer(DATA, 32)])
    guest.kick(1)
    assert len(transmit.take()) == 2


def test_a_frame_that_is_too_long_loses_the_link(cable: Cable) -> None:
    near, far = cable
    device = NetDevice(MAC, StreamLink(near))
    far.sendall(b"\xff\xff\xff\xff")
    device.receive()
    assert not device.wants_read


def test_a_frame_waits_for_the_socket_and_for_the_buffers(
    memory: GuestMemory, cable: Cable
) -> None:
    near, far = cable
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    device = NetDevice(MAC, StreamLink(near))
    guest = Guest(device, memory)
    guest.start()
    receive, transmit, _ = guest.queues
    memory.write(DATA, bytes(12) + b"x" * 60000)
    for _ in range(3):
        transmit.add([Buffer(DATA, 12), Buffer(DATA + 12, 60000)])
    guest.kick(1)
    sent = len(transmit.take())
    assert (device.wants_write, sent < 3) == (True, True)
    got = b""
    while len(got) < 3 * 60004:
        got += far.recv(1 << 20)
        device.flush()
    assert got == framed(b"x" * 60000) * 3
    assert len(transmit.take()) == 3 - sent
    # Buffers for half of a frame: it waits for the others, in a saved machine too.
    far.sendall(framed(b"y" * 6000))
    for index in range(3):
        receive.add([Buffer(BUFFERS + 2048 * index, 1024, write=True)])
    device.receive()
    assert (receive.take(), device.wants_read) == ([], False)
    saved = guest.transport.state()
    other = NetDevice(MAC, StreamLink(socket.socketpair()[0]))
    guest.transport = Guest(other, memory).transport
    guest.transport.restore(saved)
    assert guest.transport.state() == saved
    for index in range(3, 6):
        receive.add([Buffer(BUFFERS + 2048 * index, 1024, write=True)])
    guest.transport.rouse()
    assert [written for _, written in receive.take()] == [1024] * 5 + [892]
    frame = b"".join(memory.read(BUFFERS + 2048 * index, 1024) for index in range(6))
    assert frame[:6012] == b"\2" + bytes(9) + b"\6\0" + b"y" * 6000


def test_frames_wait_for_a_limit_and_none_is_lost(memory: GuestMemory, cable: Cable) -> None:
    near, far = cable
    waits: list[Callable[[], None]] = []
    limits = NetLimits(Limiter(), Limiter(), lambda seconds, action: waits.append(action))
    changes: list[bool] = []
    device = NetDevice(MAC, StreamLink(near), lambda: changes.append(True), limits=limits)
    guest = Guest(device, memory)
    guest.start()
    receive, transmit = guest.queues[:2]
    for index in range(4):
        receive.add([Buffer(BUFFERS + 2048 * index, 2048, write=True)])
    # A bucket of 10 bytes: one frame empties each for long.
    for limiter in (limits.receive, limits.send):
        limiter.set(size=100)
    far.sendall(framed(b"a" * 1000, b"b" * 1000))
    memory.write(DATA, bytes(HEADER_SIZE) + b"c" * 1000)
    for _ in range(2):
        transmit.add([Buffer(DATA, HEADER_SIZE + 1000)])
    device.receive()
    guest.kick(1)
    assert [written for _, written in receive.take()] == [HEADER_SIZE + 1000]
    assert len(transmit.take()) == 1
    assert far.recv(1 << 16) == framed(b"c" * 1000)
    assert (device.wants_read, bool(changes)) == (False, True)
    # What is tried again before its time waits on, by the same timers.
    guest.kick(1)
    device.receive()
    assert (transmit.take(), receive.take(), len(waits)) == ([], [], 2)
    for limiter in (limits.receive, limits.send):
        limiter.set()
    for end in waits:
        end()
    assert device.wants_read
    device.receive()
    assert [written for _, written in receive.take()] == [HEADER_SIZE + 1000]
    assert len(transmit.take()) == 1
    assert far.recv(1 << 16) == framed(b"c" * 1000)


def test_a_card_announces_itself_in_its_guests_name(memory: GuestMemory, cable: Cable) -> None:
    near, far = cable
    far.setblocking(False)
    device = NetDevice(MAC, StreamLink(near))
    device.announce()
    with pytest.raises(BlockingIOError):
        far.recv(1)
    guest = Guest(device, memory)
    guest.start()
    device.announce()
    operation, end = bytes.fromhex("0001 0800 06 04 0003"), bytes(4)
    frame = b"\xff" * 6 + MAC + b"\x80\x35" + operation + (MAC + end) * 2 + bytes(18)
    assert far.recv(1 << 16) == framed(frame)
    far.close()
    device.announce()
    assert guest.read(0x2006, 2) == 0


def test_what_a_link_holds_is_lost_with_it(memory: GuestMemory, cable: Cable) -> None:
    near, far = cable
    device = NetDevice(MAC, StreamLink(near))
    guest = Guest(device, memory)
    guest.start()
    far.sendall(framed(b"cut off here, say")[:12])
    device.receive()
    near, far = socket.socketpair()
    with near, far:
        other = Guest(NetDevice(MAC, StreamLink(near)), memory)
        other.transport.restore(guest.transport.state())
        guest.queues[0].add([Buffer(DATA, 64, write=True)])
        far.sendall(framed(b"whole"))
        other.transport.kick(0)
        assert memory.read(DATA + 12, 5) == b"whole"


def test_without_merging_a_frame_has_one_buffer_or_is_lost(
    memory: GuestMemory, cable: Cable
) -> None:
    near, far = cable
    device = NetDevice(MAC, StreamLink(near))
    guest = Guest(device, memory)
    guest.start(refuse=Feature.MRG_RXBUF | Feature.GUEST_CSUM)
    receive = guest.queues[0]
    for index in range(2):
        receive.add([Buffer(DATA + 4096 * index, 1526, write=True)])
    far.sendall(framed(b"long" * 1000, b"short", b"exact" + bytes(1509)))
    device.receive()
    assert receive.take() == [(0, 17), (1, 1526)]
    assert memory.read(DATA, 17) == bytes(10) + b"\1\0short"


def test_a_buffer_without_room_for_a_header_breaks_the_rules(
    memory: GuestMemory, cable: Cable
) -> None:
    device = NetDevice(MAC, StreamLink(cable[0]))
    guest = Guest(device, memory)
    guest.start()
    guest.queues[0].add([Buffer(DATA, 11, write=True)])
    guest.kick(0)
    assert "11 bytes" in str(guest.transport.failure)


def test_a_header_may_be_in_pieces(memory: GuestMemory, cable: Cable) -> None:
    near, far = cable
    device = NetDevice(MAC, StreamLink(near))
    guest = Guest(device, memory)
    guest.start()
    places = [(0, 0), (0x100, 5), (0x200, 6), (0x300, 3), (0x400, 40)]
    guest.queues[0].add([Buffer(DATA + at, length, write=True) for at, length in places])
    far.sendall(framed(b"in pieces"))
    device.receive()
    assert guest.queues[0].take() == [(0, 21)]
    pieces = b"".join(memory.read(DATA + at, length) for at, length in places)
    assert pieces[:21] == b"\2" + bytes(9) + b"\1\0in pieces"


def test_the_guest_changes_its_address_and_what_is_left_undone(
    memory: GuestMemory, cable: Cable
) -> None:
    near, far = cable
    device = NetDevice(MAC, StreamLink(near), mtu=9000)
    guest = Guest(device, memory)
    guest.start()
    assert guest.read(0x2000, 4) | guest.read(0x2004, 2) << 32 == int.from_bytes(MAC, "little")
    assert guest.read(0x200A, 2) == 9000

    def obeyed(command: bytes) -> bool:
        memory.write(DATA, command)
        memory.write(DATA + 0x8000, b"\xff")
        buffers = [Buffer(DATA, 2), Buffer(DATA + 2, len(command) - 2)]
        head = guest.queues[2].add([*buffers, Buffer(DATA + 0x8000, 1, write=True)])
        guest.kick(2)
        assert guest.queues[2].take() == [(head, 1)]
        return memory.read(DATA + 0x8000, 1) == b"\0"

    assert obeyed(b"\1\1\x52\x54\0\0\0\7")
    assert not obeyed(b"\1\1" + b"\xff" * 6)
    assert not obeyed(b"\1\0" + bytes(0x7000))
    assert obeyed(b"\5\0" + bytes(8))
    assert not obeyed(b"\5\0\0\1" + bytes(6))
    saved = guest.transport.state()
    other = Guest(NetDevice(MAC, StreamLink(socket.socketpair()[0]), mtu=9000), memory)
    other.transport.restore(saved)
    assert other.transport.state() == saved
    assert other.read(0x2005, 1) == 7
    guest.queues[0].add([Buffer(DATA, 64, write=True)])
    far.sendall(framed(b"frame"))
    device.receive()
    assert memory.read(DATA, 12) == bytes(10) + b"\1\0"
    guest.write(20, 1, 0)
    assert guest.read(0x2005, 1) == MAC[5]
    broken = cast("dict[str, object]", saved["device"])
    for name, value in (("mac", "52"), ("offloads", 1 << 7), ("waiting", "00" * 70000)):
        with pytest.raises(DamagedError):
            other.transport.restore({**saved, "device": {**broken, name: value}})


def test_a_command_without_room_for_an_answer_breaks_the_rules(
    memory: GuestMemory, cable: Cable
) -> None:
    guest = Guest(NetDevice(MAC, StreamLink(cable[0])), memory)
    guest.start()
    guest.queues[2].add([Buffer(DATA, 8)])
    guest.kick(2)
    assert "no room" in str(guest.transport.failure)


def test_a_group_address_is_no_cards(cable: Cable) -> None:
    with pytest.raises(InputError):
        NetDevice(b"\1" + MAC[1:], StreamLink(cable[0]))


@settings(max_examples=60, deadline=None)
@given(
    rings=st.lists(st.lists(st.integers(0, 3000), min_size=1, max_size=4), max_size=8),
    frames=st.lists(st.integers(1, 9000), max_size=6),
    merge=st.booleans(),
)
def test_any_frames_into_any_buffers(
    rings: list[list[int]], frames: list[int], merge: bool
) -> None:
    """Each frame is whole, in its order, in buffers as long as they were offered; or waits."""
    with GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory:
        near, far = socket.socketpair()
        device = NetDevice(MAC, StreamLink(near))
        guest = Guest(device, memory)
        guest.start(refuse=0 if merge else Feature.MRG_RXBUF)
        receive = guest.queues[0]
        offered: dict[int, list[Buffer]] = {}
        place = BUFFERS
        for ring in rings:
            if sum(len(chain) for chain in offered.values()) + len(ring) > 16:
                break
            buffers = []
            for length in ring:
                buffers.append(Buffer(place, length, write=True))
                place += length + 8
            offered[receive.add(buffers)] = buffers
        contents = [bytes([65 + index]) * size for index, size in enumerate(frames)]
        far.sendall(framed(*contents))
        device.receive()
        device.receive()
        got = [frame[HEADER_SIZE:] for frame in taken(guest, offered)]
        if guest.transport.failure is None:
            wanted = contents if merge else [each for each in contents if each in got]
            assert got == wanted[: len(got)]
        near.close()
        far.close()


def taken(guest: Guest, offered: dict[int, list[Buffer]]) -> list[bytes]:
    """The frames that a driver finds in the buffers that it was given back, with headers."""
    frames = []
    given = iter(guest.queues[0].take())
    for head, written in given:
        data = chain_data(guest.memory, offered[head], written)
        for _ in range(int.from_bytes(data[10:12], "little") - 1):
            head, written = next(given)
            data += chain_data(guest.memory, offered[head], written)
        frames.append(data)
    return frames


def chain_data(memory: GuestMemory, buffers: list[Buffer], written: int) -> bytes:
    data = b"".join(memory.read(buffer.address, buffer.length) for buffer in buffers)
    assert written <= len(data)
    return data[:written]


def test_a_broken_ring_does_not_make_the_cable_busy(memory: GuestMemory, cable: Cable) -> None:
    """What comes from the other end is taken and dropped until the driver starts anew."""
    near, far = cable
    device = NetDevice(MAC, StreamLink(near))
    guest = Guest(device, memory)
    guest.start()
    guest.queues[0].offer(99)
    far.sendall(b"\0\0\0\3one\0\0\0\3two")
    device.receive()
    assert guest.read(20, 1) & 64
    device.receive()
    with pytest.raises(BlockingIOError):
        near.recv(1)
    assert device.wants_read
    guest.write(20, 1, 0)
    guest.queues.clear()
    guest.start()
    far.sendall(b"\0\0\0\3new")
    guest.queues[0].add([Buffer(DATA, 64, write=True)])
    device.receive()
    assert memory.read(DATA + 12, 3) == b"new"


# --- by a tap ----------------------------------------------------------------------------------


class TapGuest:
    """A guest on a tap, which speaks as much of IPv4 and TCP as its tests need."""

    def __init__(self, namespace: Namespace, memory: GuestMemory, refuse: int = 0) -> None:
        self.namespace = namespace
        self.memory = memory
        self.link = TapLink(namespace.open_tap())
        self.device = NetDevice(MAC, self.link)
        self.guest = Guest(self.device, memory)
        self.guest.start(refuse)
        self.offered: dict[int, list[Buffer]] = {}
        namespace.ip("neigh", "add", GUEST_ADDRESS, "lladdr", MAC.hex(":"), "dev", TAP)
        link = namespace.run("cat", f"/sys/class/net/{TAP}/address").strip()
        self.ethernet = bytes.fromhex(link.replace(":", "")) + MAC + b"\x08\0"

        self.listener = namespace.within(lambda: socket.create_server((HOST_ADDRESS, 80)))
        self.listener.settimeout(PATIENCE)
        self.sequence, self.acknowledged = 1000, 0

    def offer(self, count: int, size: int) -> None:
        """Give it buffers for frames."""
        self.offered.clear()
        for index in range(count):
            buffer = Buffer(BUFFERS + 4096 * index, size, write=True)
            self.offered[self.guest.queues[0].add([buffer])] = [buffer]
        self.guest.kick(0)

    def send(self, header: bytes, frame: bytes) -> None:
        """Send a frame."""
        self.memory.write(DATA, header + frame)
        transmit = self.guest.queues[1]
        transmit.add([Buffer(DATA, 12), Buffer(DATA + 12, len(frame))])
        self.guest.kick(1)
        assert len(transmit.take()) == 1

    def received(self) -> list[bytes]:
        """The frames that have come, with their headers; at least one."""
        frames = taken(self.guest, self.offered)
        for _ in range(20):
            if frames:
                break
            assert select.select([self.link.fileno()], [], [], 5)[0], "no frame came"
            self.device.receive()
            frames = taken(self.guest, self.offered)
        return frames

    def segment(self, flags: int, data: bytes = b"") -> bytes:
        """A TCP segment to port 80, whose checksum is left undone but for the pseudo-header."""
        length = 20 + len(data)
        addresses = socket.inet_aton(GUEST_ADDRESS) + socket.inet_aton(HOST_ADDRESS)
        pseudo = _sum(addresses + struct.pack("!HH", 6, length))
        tcp = struct.pack(
            "!HHIIBBHHH", 4000, 80, self.sequence, self.acknowledged, 0x50, flags, 65535, pseudo, 0
        )
        self.sequence += len(data) + (flags & 1) + (flags >> 1 & 1)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, 64, 6, 0) + addresses
        head = head[:10] + struct.pack("!H", ~_sum(head) & 0xFFFF) + head[12:]
        return self.ethernet + head + tcp + data

    def connect(self) -> socket.socket:
        """A connection with the host, at its end."""
        self.offer(1, 4096)
        self.send(CHECKSUM, self.segment(2))
        (answer,) = self.received()
        tcp = answer[HEADER_SIZE + 34 :]
        assert tcp[13] == 0x12, "SYN and ACK"
        self.acknowledged = int.from_bytes(tcp[4:8], "big") + 1
        self.send(CHECKSUM, self.segment(0x10))
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE)
        return connection

    def close(self) -> None:
        self.link.close()
        self.listener.close()


CHECKSUM = _HEADER.pack(1, 0, 0, 0, 34, 16, 0)


def _sum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


MakeGuest = Callable[[int], TapGuest]


@pytest.fixture
def make_guest(namespace: Namespace, memory: GuestMemory) -> Iterator[MakeGuest]:
    """Makes a guest on the namespace's tap, without some features."""
    with contextlib.ExitStack() as stack:

        def make(refuse: int) -> TapGuest:
            guest = TapGuest(namespace, memory, refuse)
            stack.callback(guest.close)
            return guest

        yield make


def test_a_segment_of_64_kib_arrives_as_a_stream(make_guest: MakeGuest) -> None:
    guest = make_guest(0)
    assert OFFLOADS & ~guest.device.features == 0
    with guest.connect() as connection:
        data = os.urandom(65535 - 40)
        header = _HEADER.pack(1, 1, 54, 1460, 34, 16, 0)
        guest.send(header, guest.segment(0x18, data))
        got = b""
        while len(got) < len(data):
            got += connection.recv(1 << 20)
        assert got == data


def test_what_the_host_sends_is_left_in_one_piece(make_guest: MakeGuest) -> None:
    guest = make_guest(0)
    with guest.connect() as connection:
        data = os.urandom(14000)
        connection.sendall(data)
        guest.offer(12, 1536)
        frame = max(guest.received(), key=len)
        flags, kind, _, segment, start, offset, buffers = _HEADER.unpack(frame[:HEADER_SIZE])
        assert (flags, kind, start, offset) == (1, 1, 34, 16)
        assert segment < 1500 < len(frame)
        assert buffers == -(-len(frame) // 1536) > 1
        assert data.startswith(frame[HEADER_SIZE + 54 :])


def test_nothing_is_left_to_a_guest_that_does_not_ask(make_guest: MakeGuest) -> None:
    guest = make_guest(OFFLOADS)
    complete = guest.segment(2)
    tcp = complete[34:]
    pseudo = complete[26:34] + struct.pack("!HH", 6, len(tcp))
    checksum = ~_sum(pseudo + tcp[:16] + b"\0\0" + tcp[18:]) & 0xFFFF
    complete = complete[:50] + checksum.to_bytes(2, "big") + complete[52:]
    guest.offer(1, 4096)
    # What was not negotiated does not reach the tap.
    guest.send(CHECKSUM, complete)
    guest.send(bytes(12), complete)
    (answer,) = guest.received()
    assert (answer[0] & 1, answer[1]) == (0, 0)
    received = answer[HEADER_SIZE + 34 :]
    pseudo = answer[HEADER_SIZE + 26 : HEADER_SIZE + 34] + struct.pack("!HH", 6, len(received))
    assert _sum(pseudo + received) == 0xFFFF


def test_the_tap_has_no_frame_that_breaks_the_rules(
    make_guest: MakeGuest, namespace: Namespace
) -> None:
    guest = make_guest(0)
    frame = guest.segment(2)
    for header, size in (
        (_HEADER.pack(1, 0, 0, 0, 60000, 16, 0), len(frame)),
        (_HEADER.pack(1, 1, 54, 0, 34, 16, 0), len(frame)),
        (_HEADER.pack(1, 1, 54, 0xFFFF, 34, 16, 0), len(frame)),
        (_HEADER.pack(0, 1, 54, 1448, 34, 16, 0), len(frame)),
        (bytes(12), 13),
        (bytes(12), 0),
    ):
        guest.send(header, frame[:size])
    statistics = f"/sys/class/net/{TAP}/statistics"
    counted = namespace.run("cat", f"{statistics}/rx_packets", f"{statistics}/rx_dropped")
    assert counted.split() == ["0", "0"]
    # What its rules allow and the kernel does not: the frame is lost, and the link is not.
    guest.send(_HEADER.pack(1, 4, 54, 1448, 34, 16, 0), frame)
    guest.send(CHECKSUM, frame)
    guest.offer(1, 4096)
    assert len(guest.received()) == 1
    assert guest.guest.read(0x2006, 2) == 1


def test_a_tap_that_is_removed_is_a_cable_that_was_pulled(
    make_guest: MakeGuest, namespace: Namespace
) -> None:
    guest = make_guest(0)
    namespace.ip("link", "delete", TAP)
    guest.send(CHECKSUM, guest.segment(2))
    assert guest.guest.read(0x2006, 2) == 0
    assert not guest.device.wants_read
    guest.guest.write(20, 1, 0)
    assert guest.guest.read(20, 1) == 0


def test_a_saved_card_goes_on_with_another_tap(make_guest: MakeGuest) -> None:
    guest = make_guest(Feature.GUEST_TSO4)
    saved = guest.guest.transport.state()
    guest.link.close()
    guest.link = TapLink(guest.namespace.open_tap())
    guest.device = NetDevice(MAC, guest.link)
    other = Guest(guest.device, guest.memory)
    other.transport.restore(saved)
    assert other.transport.state() == saved
    near, far = socket.socketpair()
    with near, far:
        slower = Guest(NetDevice(MAC, StreamLink(near)), guest.memory)
        with pytest.raises(DamagedError, match="does not offer"):
            slower.transport.restore(saved)
