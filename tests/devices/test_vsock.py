"""The socket device: streams both ways, credit, ends of every kind, and hostile packets."""

from __future__ import annotations

import contextlib
import hashlib
import random
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer
from tests.waiting import PATIENCE

from cerne.devices.virtio.vsock.connection import BUFFER, Connection
from cerne.devices.virtio.vsock.device import MOST_CONNECTIONS, VsockDevice
from cerne.devices.virtio.vsock.packet import HEADER_SIZE, STREAM, Header, Operation, Shutdown
from cerne.errors import InputError
from cerne.kvm.memory import GuestAddress, GuestMemory

CID = 3
SERVED = 80
MINE = 1025
ROOM = 1 << 18

_RECEIVE, _TRANSMIT, _EVENT = 0, 1, 2
_BUFFERS, _BUFFER_SIZE = 0x40000, HEADER_SIZE + 4096
_PACKET = 0x80000
_SHORT = 64
_EVENT_BUFFER = 0x3F000


@dataclass
class Programs:
    """The programs of a host, that serve one port."""

    ends: list[socket.socket] = field(default_factory=list)
    """Their ends of the guest's connections."""
    open: list[Connection] = field(default_factory=list)

    def pair(self) -> socket.socket:
        """A socket for the device, whose other end is kept."""
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(PATIENCE)
        self.ends.append(far)
        return near

    def connect(self, port: int) -> socket.socket:
        if port != SERVED:
            raise ConnectionRefusedError
        return self.pair()

    def opened(self, connection: Connection) -> None:
        self.open.append(connection)

    def changed(self, connection: Connection) -> None:
        if connection.ended:
            connection.link.close()


class Driver:
    """A guest's driver, which keeps the device supplied with buffers, unless it is told not to."""

    def __init__(self, memory: GuestMemory, programs: Programs) -> None:
        self.programs = programs
        self.memory = memory
        self.device = VsockDevice(CID, programs)
        self.guest = Guest(self.device, memory)
        self.start()

    def start(self) -> None:
        self.guest.queues.clear()
        self.guest.start()
        self._places: dict[int, int] = {}
        self._short = 0

    def supply(self, count: int = 16, size: int = _BUFFER_SIZE) -> None:
        """Give the device that many buffers more, as far as there is place."""
        queue = self.guest.queues[_RECEIVE]
        free = sorted(set(range(16)) - set(self._places.values()))
        for place in free[:count]:
            head = queue.add([Buffer(_BUFFERS + place * 0x2000, size, write=True)])
            self._places[head] = place
        self.guest.kick(_RECEIVE)

    def packets(self) -> list[tuple[Header, bytes]]:
        """What the device has put into the buffers."""
        found = []
        for head, written in self.guest.queues[_RECEIVE].take():
            place = _BUFFERS + self._places.pop(head) * 0x2000
            if written:
                header = Header.read(self.memory.read(place, HEADER_SIZE))
                assert header is not None
                assert (header.source_cid, header.target_cid) == (2, CID)
                assert header.length == written - HEADER_SIZE
                found.append((header, self.memory.read(place + HEADER_SIZE, header.length)))
        return found

    def pump(self) -> list[tuple[Header, bytes]]:
        """All packets that come until nothing goes on."""
        found = []
        while True:
            self.supply()
            self.turn()
            some = self.packets()
            found += some
            if not some and not self.turn():
                return found

    def turn(self) -> bool:
        """Do once what the loop does; whether there was anything to do."""
        busy = False
        for connection in self.device.connections:
            poll = select.poll()
            readable, writable = connection.wanted
            poll.register(connection.link, select.POLLIN * readable | select.POLLOUT * writable)
            events = poll.poll(0)[0][1] if poll.poll(0) else 0
            if readable and events & ~select.POLLOUT:
                self.device.receive(connection)
                busy = True
            if writable and events & ~select.POLLIN:
                self.device.flush(connection)
                busy = True
        return busy

    def send(self, operation: int, data: bytes = b"", **changes: int) -> None:
        """Send a packet from port `MINE` to port `SERVED`, or from others to others."""
        header = Header(CID, 2, MINE, SERVED, len(data), STREAM, operation, 0, ROOM, 0)
        self.send_raw(header._replace(**changes).pack() + data)

    def send_raw(self, packet: bytes) -> None:
        # Several short ones may wait.
        place = _PACKET + 0x1000
        if len(packet) <= _SHORT:
            self._short = (self._short + 1) % 32
            place = _PACKET + self._short * _SHORT
        self.memory.write(place, packet)
        cut = min(HEADER_SIZE, len(packet))
        buffers = [Buffer(place, cut), Buffer(place + cut, len(packet) - cut)]
        self.guest.queues[_TRANSMIT].add([each for each in buffers if each.length])
        self.guest.kick(_TRANSMIT)

    def connect(self, port: int = MINE, room: int = ROOM) -> socket.socket:
        """A connection of the guest's; the host's end of it."""
        self.send(Operation.REQUEST, source_port=port, buffer=room)
        [(answer, data)] = self.pump()
        assert (answer.operation, answer.target_port, data) == (Operation.RESPONSE, port, b"")
        return self.programs.ends[-1]


@pytest.fixture
def driver(memory: GuestMemory) -> Iterator[Driver]:
    driver = Driver(memory, Programs())
    yield driver
    driver.device.reset()
    for end in driver.programs.ends:
        end.close()


def operations(packets: list[tuple[Header, bytes]]) -> list[int]:
    return [header.operation for header, _ in packets]


def test_the_guest_is_told_its_cid(driver: Driver) -> None:
    assert driver.guest.read(0x2000, 8) == CID
    with pytest.raises(InputError):
        VsockDevice(2, driver.programs)


def test_a_guest_connects_to_a_port_that_is_served(driver: Driver) -> None:
    driver.send(Operation.REQUEST)
    [(answer, _)] = driver.pump()
    assert answer == Header(2, CID, SERVED, MINE, 0, STREAM, Operation.RESPONSE, 0, BUFFER, 0)
    driver.send(Operation.DATA, b"to the host")
    assert driver.programs.ends[0].recv(100) == b"to the host"
    driver.programs.ends[0].sendall(b"to the guest")
    [(header, data)] = driver.pump()
    assert (header.operation, data) == (Operation.DATA, b"to the guest")
    assert (header.source_port, header.target_port) == (SERVED, MINE)
    assert (header.buffer, header.forwarded) == (BUFFER, 11)


def test_a_port_that_nobody_serves_is_refused(driver: Driver) -> None:
    driver.send(Operation.REQUEST, target_port=81)
    assert operations(driver.pump()) == [Operation.RESET]
    assert driver.device.connections == ()


def test_the_host_connects_to_the_guest(driver: Driver) -> None:
    link = driver.programs.pair()
    connection = driver.device.connect(link, 22)
    [(request, _)] = driver.pump()
    assert (request.operation, request.target_port, request.buffer) == (1, 22, BUFFER)
    driver.programs.ends[0].sendall(b"early")
    assert driver.pump() == []
    assert driver.programs.open == []
    port = request.source_port
    driver.send(Operation.RESPONSE, source_port=22, target_port=port)
    assert driver.programs.open == [connection]
    assert [data for _, data in driver.pump()] == [b"early"]
    driver.send(Operation.DATA, b"late", source_port=22, target_port=port)
    assert driver.programs.ends[0].recv(100) == b"late"


def test_a_guest_refuses_the_host(driver: Driver) -> None:
    link = driver.programs.pair()
    driver.device.connect(link, 22)
    [(request, _)] = driver.pump()
    driver.send(Operation.RESET, source_port=22, target_port=request.source_port)
    assert driver.programs.ends[0].recv(1) == b""
    assert (driver.programs.open, driver.device.connections) == ([], ())


def test_the_host_is_refused_while_there_is_no_driver(driver: Driver) -> None:
    driver.guest.write(20, 1, 0)
    with pytest.raises(ConnectionRefusedError):
        driver.device.connect(driver.programs.pair(), 22)


def test_connections_of_the_host_have_ports_of_their_own(driver: Driver) -> None:
    for _ in range(3):
        driver.device.connect(driver.programs.pair(), 22)
    assert len({header.source_port for header, _ in driver.pump()}) == 3


def test_a_guest_sends_more_than_a_slow_program_takes_at_once(driver: Driver) -> None:
    """By its credit: never more than the device said that there is room for."""
    end = driver.connect()
    sent = random.Random(1).randbytes(1 << 20)
    done, room = 0, BUFFER
    got = b""
    while done < len(sent):
        piece = sent[done : done + min(room, 30_000)]
        if piece:
            driver.send(Operation.DATA, piece)
            done, room = done + len(piece), room - len(piece)
        else:
            got += end.recv(100_000)
        for header, _ in driver.pump():
            assert header.operation == Operation.CREDIT_UPDATE
            room = header.buffer - (done - header.forwarded)
    driver.send(Operation.SHUTDOWN, flags=Shutdown.SEND)
    while piece := end.recv(1 << 20):
        got += piece
        driver.pump()
    assert hashlib.sha256(got).digest() == hashlib.sha256(sent).digest()


def test_a_guest_that_sends_more_than_it_may_is_broken_off(driver: Driver) -> None:
    driver.connect()
    for _ in range(1000):
        driver.send(Operation.DATA, bytes(60_000))
        if not driver.device.connections:
            break
        [connection] = driver.device.connections
        assert len(connection._outgoing) <= BUFFER
    assert operations(driver.pump())[-1] == Operation.RESET


def test_a_guest_asks_for_its_credit(driver: Driver) -> None:
    driver.connect()
    driver.send(Operation.DATA, b"12345")
    driver.send(Operation.CREDIT_REQUEST)
    [(header, _)] = driver.pump()
    assert (header.operation, header.buffer, header.forwarded) == (6, BUFFER, 5)


def test_the_host_sends_no_more_than_the_guest_has_room_for(driver: Driver) -> None:
    end = driver.connect(room=1000)
    end.sendall(bytes(range(250)) * 10)
    packets = driver.pump()
    assert operations(packets) == [Operation.DATA, Operation.CREDIT_REQUEST]
    assert packets[0][0].length == 1000
    [connection] = driver.device.connections
    assert connection.wanted == (False, False)
    driver.send(Operation.CREDIT_UPDATE, buffer=1000, forwarded=0)
    assert driver.pump() == []
    driver.send(Operation.CREDIT_UPDATE, buffer=1000, forwarded=700)
    driver.send(Operation.CREDIT_UPDATE, buffer=2500, forwarded=1000)
    packets += driver.pump()
    assert b"".join(data for _, data in packets) == bytes(range(250)) * 10


def test_credit_goes_round(driver: Driver) -> None:
    end = driver.connect(room=1000)
    [connection] = driver.device.connections
    connection._sent = connection._guest_forwarded = (1 << 32) - 10
    end.sendall(bytes(500))
    assert driver.pump()[0][0].length == 500
    assert connection.credit == 500
    driver.send(Operation.CREDIT_UPDATE, buffer=1000, forwarded=490)
    assert connection.credit == 1000


def test_credit_that_cannot_be_is_none(driver: Driver) -> None:
    end = driver.connect(room=1000)
    driver.send(Operation.CREDIT_UPDATE, buffer=1000, forwarded=5)
    end.sendall(b"x")
    assert driver.pump() == []


def test_a_guest_without_buffers_holds_its_programs_up(driver: Driver) -> None:
    end = driver.connect()
    driver.supply(0)
    driver.packets()
    while driver.turn():
        pass
    end.setblocking(False)
    total = 0
    with pytest.raises(BlockingIOError):
        while True:
            total += end.send(bytes(4096))
            driver.turn()
    assert sum(header.length for header, _ in driver.pump()) == total


def test_the_guest_closes_its_half_first(driver: Driver) -> None:
    end = driver.connect()
    driver.send(Operation.DATA, b"question")
    driver.send(Operation.SHUTDOWN, flags=Shutdown.SEND)
    assert (end.recv(100), end.recv(100)) == (b"question", b"")
    end.sendall(b"answer")
    end.close()
    packets = driver.pump()
    assert (packets[0][1], operations(packets)) == (b"answer", [Operation.DATA, Operation.SHUTDOWN])
    assert packets[1][0].flags == Shutdown.BOTH
    driver.send(Operation.RESET)
    assert (driver.device.connections, driver.pump()) == ((), [])


def test_the_host_closes_its_half_first(driver: Driver) -> None:
    end = driver.connect()
    end.sendall(b"question")
    end.shutdown(socket.SHUT_WR)
    packets = driver.pump()
    assert operations(packets) == [Operation.DATA, Operation.SHUTDOWN]
    assert packets[1][0].flags == Shutdown.SEND
    driver.send(Operation.DATA, b"answer")
    driver.send(Operation.SHUTDOWN, flags=Shutdown.BOTH)
    assert operations(driver.pump()) == [Operation.RESET]
    assert (end.recv(100), end.recv(100)) == (b"answer", b"")
    assert driver.device.connections == ()


def test_a_guest_that_will_not_receive_is_heard(driver: Driver) -> None:
    end = driver.connect()
    driver.send(Operation.SHUTDOWN, flags=Shutdown.RECEIVE)
    with pytest.raises(BrokenPipeError):
        end.sendall(b"x")
    driver.send(Operation.DATA, b"still")
    assert end.recv(100) == b"still"


def test_a_program_that_has_gone_is_told_to_a_guest_that_sends(driver: Driver) -> None:
    end = driver.connect()
    end.sendall(b"last words")
    end.shutdown(socket.SHUT_WR)
    driver.pump()
    end.close()
    driver.send(Operation.DATA, b"x" * 50_000)
    driver.send(Operation.DATA, b"y" * 50_000)
    packets = driver.pump()
    shut = [header for header, _ in packets if header.operation == Operation.SHUTDOWN]
    assert [header.flags for header in shut] == [Shutdown.BOTH]
    assert packets[-1][0].forwarded == 100_000


def test_what_the_host_said_before_it_broke_off_is_delivered(driver: Driver) -> None:
    end = driver.connect()
    end.sendall(b"last words")
    driver.send(Operation.DATA, b"never read")
    end.close()
    packets = driver.pump()
    assert packets[0][1] == b"last words"
    assert operations(packets) == [Operation.DATA, Operation.RESET]


def _stuff(driver: Driver, end: socket.socket) -> int:
    """Send until the device keeps some; how many bytes."""
    total = 0
    [connection] = driver.device.connections
    while connection.drained:
        driver.send(Operation.DATA, bytes(50_000))
        total += 50_000
    return total


@pytest.mark.parametrize("impatient", [True, False])
def test_a_guest_that_leaves_loses_nothing_that_it_sent(driver: Driver, impatient: bool) -> None:
    """Linux waits some seconds for the answer to its SHUTDOWN, and then resets."""
    end = driver.connect()
    total = _stuff(driver, end)
    driver.pump()
    driver.send(Operation.SHUTDOWN, flags=Shutdown.BOTH)
    assert driver.pump() == []
    if impatient:
        driver.send(Operation.RESET)
        driver.connect()
        assert len(driver.device.connections) == 2
    got, packets = 0, []
    while piece := end.recv(1 << 20):
        got += len(piece)
        packets += driver.pump()
    assert got == total
    assert operations(packets) == ([] if impatient else [Operation.RESET])
    assert len(driver.device.connections) == int(impatient)


def test_a_guest_that_breaks_off_is_not_waited_for(driver: Driver) -> None:
    end = driver.connect()
    _stuff(driver, end)
    driver.send(Operation.RESET)
    assert driver.device.connections == ()


def test_there_are_many_connections_and_no_more(driver: Driver) -> None:
    ends = [driver.connect(port) for port in range(MOST_CONNECTIONS)]
    driver.send(Operation.REQUEST, source_port=MOST_CONNECTIONS)
    assert operations(driver.pump()) == [Operation.RESET]
    with pytest.raises(ConnectionRefusedError):
        driver.device.connect(driver.programs.pair(), 1)
    for port, end in enumerate(ends):
        end.sendall(b"%d" % port)
    said = {header.target_port: data for header, data in driver.pump()}
    assert said == {port: b"%d" % port for port in range(MOST_CONNECTIONS)}
    driver.send(Operation.RESET, source_port=0)
    driver.connect(MOST_CONNECTIONS)


@pytest.mark.parametrize(
    ("changes", "data"),
    [
        ({"operation": 0}, b""),
        ({"operation": 99}, b""),
        ({"operation": Operation.REQUEST}, b""),
        ({"operation": Operation.RESPONSE}, b""),
        ({"operation": Operation.DATA, "length": 5}, b"four"),
        ({"operation": Operation.DATA, "length": 0xFFFFFFFF}, b"four"),
    ],
)
def test_what_a_connection_does_not_allow_ends_it(
    driver: Driver, changes: dict[str, int], data: bytes
) -> None:
    end = driver.connect()
    operation = changes.pop("operation")
    driver.send(operation, data, **changes)
    assert operations(driver.pump()) == [Operation.RESET]
    assert (end.recv(1), driver.device.connections) == (b"", ())


def test_a_guest_does_not_send_after_it_said_that_it_will_not(driver: Driver) -> None:
    driver.connect()
    driver.send(Operation.SHUTDOWN, flags=Shutdown.SEND)
    driver.send(Operation.DATA, b"more")
    assert operations(driver.pump()) == [Operation.RESET]


@pytest.mark.parametrize("operation", [0, 2, 4, 5, 6, 7, 99])
def test_what_belongs_to_no_connection_is_refused(driver: Driver, operation: int) -> None:
    driver.send(operation)
    [(answer, _)] = driver.pump()
    assert (answer.operation, answer.source_port, answer.target_port) == (3, SERVED, MINE)


def test_a_type_that_is_not_known_is_refused_by_that_type(driver: Driver) -> None:
    driver.connect()
    driver.send(Operation.REQUEST, kind=2)
    [(answer, _)] = driver.pump()
    assert (answer.operation, answer.kind) == (Operation.RESET, 2)
    assert len(driver.device.connections) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"operation": Operation.RESET},
        {"source_cid": 4},
        {"source_cid": CID | 1 << 32},
        {"target_cid": 1},
        {"target_cid": CID},
    ],
)
def test_what_is_not_for_the_host_is_dropped(driver: Driver, changes: dict[str, int]) -> None:
    driver.send(changes.pop("operation", Operation.REQUEST), b"", **changes)
    assert (driver.pump(), driver.device.connections) == ([], ())


@pytest.mark.parametrize("length", [1, HEADER_SIZE - 1])
def test_a_packet_that_is_too_short_is_dropped(driver: Driver, length: int) -> None:
    driver.send_raw(bytes(length))
    assert driver.pump() == []
    assert driver.guest.transport.failure is None


def test_answers_wait_for_buffers_and_are_not_without_bound(driver: Driver) -> None:
    taken = 0
    transmit = driver.guest.queues[_TRANSMIT]
    for port in range(1100):
        if port - taken > 15:
            break
        driver.send(Operation.DATA, source_port=port)
        taken += len(transmit.take())
    assert taken == 1024
    answered = [header.target_port for header, _ in driver.pump()]
    assert answered == list(range(port))
    driver.connect()


def test_buffers_that_hold_no_packet_are_given_back(driver: Driver) -> None:
    driver.send(Operation.REQUEST)
    driver.supply(3, HEADER_SIZE)
    assert driver.packets() == []
    assert operations(driver.pump()) == [Operation.RESPONSE]


@pytest.mark.parametrize("head", [99, None])
def test_broken_buffers_end_all_connections(driver: Driver, head: int | None) -> None:
    """Whoever waits for the guest is told, and nobody asks for its buffers over and over."""
    end = driver.connect()
    driver.packets()
    receive = driver.guest.queues[_RECEIVE]
    if head is not None:
        receive.offer(head)
    else:
        # More are offered than there can be.
        driver.memory.write_u16(receive.available + 2, receive.offered + 99)
    end.sendall(b"x")
    driver.turn()
    assert driver.guest.transport.failure is not None
    assert driver.device.connections == ()
    with pytest.raises(ConnectionResetError):
        end.recv(1)
    with pytest.raises(ConnectionRefusedError):
        driver.device.connect(driver.programs.pair(), 1)


def test_a_reset_of_the_driver_ends_its_connections(driver: Driver) -> None:
    end = driver.connect()
    driver.guest.write(20, 1, 0)
    assert (end.recv(1), driver.device.connections) == (b"", ())
    driver.start()
    driver.connect()


def test_a_guest_that_goes_on_elsewhere_is_told(driver: Driver, memory: GuestMemory) -> None:
    end = driver.connect()
    end.sendall(b"unread")
    driver.supply()
    driver.guest.queues[_EVENT].add([Buffer(_EVENT_BUFFER, 4, write=True)])
    memory.write(_EVENT_BUFFER, b"\xff" * 4)
    transmit = driver.guest.queues[_TRANSMIT]
    driver.memory.write(_PACKET, Header(CID, 2, MINE, SERVED, 0, 1, 5, 0, ROOM, 0).pack())
    transmit.add([Buffer(_PACKET, HEADER_SIZE)])
    state = driver.guest.transport.state()

    other = Guest(VsockDevice(CID, driver.programs), memory)
    other.transport.restore(state)
    assert other.transport.state() == state
    transmit.take()
    other.transport.rouse()
    # What the connection's packets said is not answered: the guest will know that it is gone.
    assert len(transmit.take()) == 1
    assert driver.packets() == []
    assert driver.guest.queues[_EVENT].take() == [(0, 4)]
    assert struct.unpack("<I", memory.read(_EVENT_BUFFER, 4)) == (0,)
    device = other.transport.device
    assert isinstance(device, VsockDevice)
    assert device.connections == ()
    assert len(driver.device.connections) == 1


_FIELDS = {
    "source_cid": st.sampled_from([CID, CID, CID, 4, 1 << 32]),
    "target_cid": st.sampled_from([2, 2, 2, 3]),
    "source_port": st.integers(0, 3),
    "target_port": st.sampled_from([SERVED, SERVED, 1 << 30, (1 << 30) + 1, 0]),
    "kind": st.sampled_from([1, 1, 1, 0, 2]),
    "operation": st.integers(0, 8),
    "flags": st.integers(0, 7),
    "buffer": st.sampled_from([0, 1, 1000, ROOM, 0xFFFFFFFF]),
    "forwarded": st.sampled_from([0, 1, 1000, 0xFFFFFFFF]),
    "length": st.sampled_from([None, 0, 1, 0xFFFFFFFF]),
    "data": st.sampled_from([b"", b"x", bytes(5000), bytes(60_000)]),
}
_STEPS = st.one_of(
    st.fixed_dictionaries(_FIELDS),
    st.sampled_from(["supply", "turn", "host connects", "host sends", "host reads", "host goes"]),
)


@settings(deadline=None)
@given(st.lists(_STEPS, max_size=40))
def test_no_sequence_of_packets_does_harm(steps: list[dict[str, object] | str]) -> None:
    with GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory:
        programs = Programs()
        driver = Driver(memory, programs)
        for step in steps:
            _do(driver, step)
            assert driver.guest.transport.failure is None
            assert all(len(each._outgoing) <= BUFFER for each in driver.device.connections)
        for header, _ in driver.packets():
            assert header.operation in set(Operation)
        driver.device.reset()
        for end in programs.ends:
            end.close()


def _do(driver: Driver, step: dict[str, object] | str) -> None:
    ends = [end for end in driver.programs.ends if end.fileno() >= 0][-1:]
    for end in ends:
        end.setblocking(False)
    match step:
        case "supply":
            driver.packets()
            driver.supply(5)
        case "turn":
            driver.turn()
        case "host connects":
            driver.device.connect(driver.programs.pair(), 2)
        case "host sends":
            for end in ends:
                with contextlib.suppress(OSError):
                    end.send(bytes(3000))
        case "host reads":
            for end in ends:
                with contextlib.suppress(OSError):
                    end.recv(50_000)
        case "host goes":
            for end in ends:
                end.close()
        case dict():
            fields = dict(step)
            data, length = fields.pop("data"), fields.pop("length")
            assert isinstance(data, bytes)
            size = len(data) if length is None else length
            header = Header(**fields, length=size)  # type: ignore[arg-type]
            driver.send_raw(header.pack() + data)


@given(st.binary(max_size=64))
def test_a_header_is_read_as_it_is_written(data: bytes) -> None:
    header = Header.read(data)
    if header is None:
        assert len(data) < HEADER_SIZE
    else:
        assert header.pack() == data[:HEADER_SIZE]
