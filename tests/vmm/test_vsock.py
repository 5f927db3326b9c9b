"""The host's side of a machine's sockets: Unix sockets in its directory, with a guest in Python."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.descriptors import open_descriptors
from tests.devices.pci_guest import Guest
from tests.devices.queue_driver import Buffer
from tests.waiting import PATIENCE

from cerne.devices.virtio.vsock.packet import HEADER_SIZE, STREAM, Header, Operation
from cerne.engine.opened import Opened
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.vmm.config import VsockConfig
from cerne.vmm.loop import Loop
from cerne.vmm.vsock import GUEST_CID, HostSockets

_BUFFERS, _PACKET = 0x40000, 0x80000
_ROOM = 1 << 18


class Machine:
    """A loop with sockets, and a guest that answers as it is told."""

    def __init__(self, home: Path, memory: GuestMemory) -> None:
        self.directory = home / "vsock"
        self.loop = Loop()
        opened = Opened()
        directory = opened.searched(self.directory)
        listener = opened.listening(self.directory / "guest.sock")
        self.sockets = HostSockets(self.loop, VsockConfig(listener, directory))
        self.guest = Guest(self.sockets.device, memory)
        self.guest.start()
        self._memory = memory
        self._receive, self._transmit, _ = self.guest.queues
        for place in range(16):
            address = _BUFFERS + 0x2000 * place
            self._receive.add([Buffer(address, 0x2000, write=True)])
        self._seen: list[tuple[Header, bytes]] = []
        self._thread = threading.Thread(target=self.loop.run)
        self._thread.start()

    def send(self, operation: int, source: int, target: int, data: bytes = b"") -> None:
        header = Header(GUEST_CID, 2, source, target, len(data), STREAM, operation, 0, _ROOM, 0)
        self._memory.write(_PACKET, header.pack() + data)
        self._transmit.add([Buffer(_PACKET, HEADER_SIZE + len(data))])
        self.guest.kick(1)

    def packets(self) -> list[tuple[Header, bytes]]:
        """All that came so far; 16 at most."""
        with self.sockets.device.lock:
            for head, written in self._receive.take():
                packet = self._memory.read(_BUFFERS + 0x2000 * head, written)
                header = Header.read(packet)
                assert header is not None
                self._seen.append((header, packet[HEADER_SIZE:]))
        return self._seen

    def call(self, line: bytes) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(str(self.directory / "guest.sock"))
        caller.settimeout(PATIENCE)
        caller.sendall(line)
        return caller

    def close(self) -> None:
        self.loop.ask(self.loop.stop)
        self._thread.join()
        self.sockets.close()
        self.loop.close()


@pytest.fixture
def machine(home: Path) -> Iterator[Machine]:
    with (
        # It looks names up by its working directory.
        contextlib.chdir("/"),
        GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory,
        contextlib.closing(Machine(home, memory)) as made,
    ):
        yield made


Eventually = Callable[[Callable[[], bool]], None]


def test_nothing_of_it_stays(home: Path, eventually: Eventually) -> None:
    """As in a forked child, which is another machine in the same process."""

    before = open_descriptors()
    with (
        contextlib.chdir("/"),
        GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        machine = Machine(home, memory)
        listener.bind(str(machine.directory / "1"))
        listener.listen()
        machine.send(Operation.REQUEST, 99, 1)
        with machine.call(b"CONNECT 7\n"), machine.call(b"CONN"):
            eventually(lambda: len(machine.sockets.device.connections) == 2)
            eventually(lambda: len(machine.sockets._callers) == 1)
            machine.close()
    assert open_descriptors() == before


def test_a_program_is_connected_to_the_guest(machine: Machine, eventually: Eventually) -> None:
    # What it says at once is the guest's, but for the line.
    with machine.call(b"CONNECT 52\nhello") as caller:
        eventually(lambda: len(machine.packets()) == 1)
        [(request, _)] = machine.packets()
        assert (request.operation, request.target_port) == (Operation.REQUEST, 52)
        port = request.source_port
        machine.send(Operation.RESPONSE, 52, port)
        machine.send(Operation.DATA, 52, port, b"welcome")
        eventually(lambda: len(machine.packets()) == 2)
        assert machine.packets()[1][1] == b"hello"
        said = f"OK {port}\nwelcome".encode()
        assert caller.recv(len(said), socket.MSG_WAITALL) == said
        machine.send(Operation.RESET, 52, port)
        assert caller.recv(1) == b""


def test_a_line_may_come_in_pieces(machine: Machine, eventually: Eventually) -> None:
    with machine.call(b"CONN") as caller:
        caller.sendall(b"ECT 7")
        caller.sendall(b"\n")
        eventually(lambda: [header.target_port for header, _ in machine.packets()] == [7])


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT \n",
        b"CONNECT -1\n",
        b"CONNECT 4294967295\n",
        b"CONNECT 1 2\n",
        b"connect 1\n",
        b"\n",
        b"x" * 32,
        b"CONNECT 1" + b" " * 100,
    ],
)
def test_what_is_no_request_is_hung_up_on(machine: Machine, line: bytes) -> None:
    with machine.call(line) as caller, contextlib.suppress(ConnectionResetError):
        assert caller.recv(1) == b""
    assert machine.packets() == []


def test_a_program_that_says_nothing_is_forgotten_when_it_goes(
    machine: Machine, eventually: Eventually
) -> None:
    with machine.call(b"CONN"):
        eventually(lambda: len(machine.sockets._callers) == 1)
    eventually(lambda: len(machine.sockets._callers) == 0)


def test_those_that_say_nothing_hold_others_up_only_until_they_go(
    machine: Machine, eventually: Eventually
) -> None:
    silent = [machine.call(b"") for _ in range(64)]
    eventually(lambda: len(machine.sockets._callers) == 64)
    with machine.call(b"CONNECT 9\n"):
        silent.pop().close()
        eventually(lambda: len(machine.packets()) == 1)
    for each in silent:
        each.close()


def test_the_guest_is_connected_to_a_program(machine: Machine, eventually: Eventually) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(machine.directory / "1234"))
        listener.listen()
        machine.send(Operation.REQUEST, 99, 1234)
        program, _ = listener.accept()
        with program:
            program.sendall(b"hello")
            eventually(lambda: len(machine.packets()) == 2)
            assert machine.packets()[0][0].operation == Operation.RESPONSE
            assert machine.packets()[1][1] == b"hello"
            # More than its socket takes at once waits in the device.
            for _ in range(6):
                machine.send(Operation.DATA, 99, 1234, bytes(50_000))
            assert len(program.recv(300_000, socket.MSG_WAITALL)) == 300_000


def test_the_guest_finds_nobody(machine: Machine, eventually: Eventually) -> None:
    (machine.directory / "7").write_text("a file")
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(machine.directory / "8"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(machine.directory / "9"))
        for port in (6, 7, 8, 9):
            machine.send(Operation.REQUEST, 99, port)
    eventually(lambda: len(machine.packets()) == 4)
    assert {header.operation for header, _ in machine.packets()} == {Operation.RESET}


def test_no_more_can_wait_than_a_socket_holds(machine: Machine, eventually: Eventually) -> None:
    """A program that does not accept holds nobody else up."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(machine.directory / "5"))
        listener.listen(0)
        for source in (1, 2):
            machine.send(Operation.REQUEST, source, 5)
        eventually(lambda: len(machine.packets()) == 2)
        assert [header.operation for header, _ in machine.packets()] == [2, 3]
