"""A device whose queues a backend serves: what it is told, and when."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Sequence

import pytest
from tests.devices.pci_guest import Guest

from cerne.devices.state import PlainState
from cerne.devices.virtio.device import Notify, VirtioDevice
from cerne.devices.virtio.handover import HandedQueue
from cerne.devices.virtio.queue import Queue
from cerne.kvm.memory import GuestMemory


class Handing(VirtioDevice):
    """Keeps its first queue, and hands the second one over."""

    device_type = 42
    queue_sizes = (16, 16)
    handed_queues = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.served: list[int] = []
        self.said: list[tuple[str, HandedQueue | None]] = []

    def activate(self, queues: Sequence[Queue], features: int, notify: Notify) -> None:
        super().activate(queues, features, notify)
        self._say("activate", 1)

    def state(self) -> PlainState:
        return {}

    def process(self, queue_index: int) -> None:
        self.served.append(queue_index)

    def queue_started(self, queue_index: int) -> None:
        self._say("started", queue_index)

    def queue_stopped(self, queue_index: int) -> None:
        self._say("stopped", queue_index)

    def queue_rerouted(self, queue_index: int) -> None:
        self._say("rerouted", queue_index)

    def _say(self, what: str, queue_index: int) -> None:
        assert self._host is not None
        self.said.append((what, self._host.hand_over(queue_index)))


@pytest.fixture
def doorbells() -> Iterator[list[int]]:
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    yield bells
    for bell in bells:
        os.close(bell)


@pytest.fixture
def guest(memory: GuestMemory, doorbells: list[int]) -> Guest:
    guest = Guest(Handing(), memory, doorbells)
    guest.routes.calls = {vector: 1000 + vector for vector in range(4)}
    guest.start()
    return guest


def _device(guest: Guest) -> Handing:
    assert isinstance(guest.transport.device, Handing)
    return guest.transport.device


def test_a_doorbell_before_the_driver_is_ready_is_heard_when_it_is(
    memory: GuestMemory, doorbells: list[int]
) -> None:
    def rung() -> list[bool]:
        return [bool(select.select([bell], [], [], 0)[0]) for bell in doorbells]

    for bells in ([0], [1], [0, 1]):
        guest = Guest(Handing(), memory, doorbells)
        guest.start(last=11)
        for queue in bells:
            guest.kick(queue)
        assert (_device(guest).served, rung()) == ([], [False, False])
        # One that is saved there has lost what was on its way: all queues are looked at.
        restored = Guest(Handing(), memory, doorbells)
        restored.transport.restore(guest.transport.state())
        guest.write(20, 1, 15)
        assert [os.eventfd_read(doorbells[queue]) for queue in bells] == [1] * len(bells)
        assert rung() == [False, False]
        restored.transport.rouse()
        restored.write(20, 1, 15)
        assert [os.eventfd_read(bell) for bell in doorbells] == [1, 1]


def test_a_queue_is_handed_over_as_the_driver_set_it_up(guest: Guest, doorbells: list[int]) -> None:
    driver = guest.queues[1]
    rings = (driver.descriptors, driver.available, driver.used)
    queue = HandedQueue(1, 16, *rings, 0, kick=doorbells[1], call=1002)
    assert _device(guest).said == [("activate", queue)]


def test_a_doorbell_that_left_the_kernel_reaches_the_backend(
    guest: Guest, doorbells: list[int]
) -> None:
    guest.kick(0)
    guest.kick(1)
    assert _device(guest).served == [0]
    assert os.eventfd_read(doorbells[1]) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(doorbells[0])


def test_another_vector_while_it_is_served_is_told(guest: Guest) -> None:
    device = _device(guest)
    device.said.clear()
    for vector, call in ((0, 1000), (77, 1003)):
        guest.write(22, 2, 1)
        guest.write(26, 2, vector)
        ((what, queue),) = device.said
        assert queue is not None
        assert (what, queue.call) == ("rerouted", call)
        device.said.clear()


def test_a_queue_that_is_reset_is_taken_back_and_may_be_used_again(guest: Guest) -> None:
    device = _device(guest)
    device.said.clear()
    guest.write(22, 2, 1)
    guest.write(58, 2, 1)
    assert [what for what, _ in device.said] == ["stopped"]
    assert device._host is not None
    assert device._host.hand_over(1) is None
    guest.write(24, 2, 16)
    for at, address in ((32, 0x8000), (40, 0x9000), (48, 0xA000)):
        guest.write(at, 8, address)
    guest.write(28, 2, 1)
    (_, (what, queue)) = device.said
    assert what == "started"
    assert queue is not None
    assert (queue.descriptors, queue.driver, queue.device) == (0x8000, 0x9000, 0xA000)


def test_a_queue_that_is_taken_back_goes_on_where_it_was(guest: Guest) -> None:
    queue = guest.transport.queues[1]
    driver = guest.queues[1]
    guest.memory.write_u16(driver.used + 2, 7)
    queue.take_back(0x10009)
    assert (queue.next_available, queue.used_index()) == (9, 7)
    driver.offered = 9
    driver.describe(0, 0x20000, 16)
    driver.offer(0)
    chain = queue.pop()
    assert chain is not None
    queue.push(chain.head, 0)
    assert guest.memory.read_u16(driver.used + 2) == 8
