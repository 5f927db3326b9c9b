"""The split virtqueue, driven by an honest driver and by hostile ones."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.devices.queue_driver import INDIRECT, NEXT, WRITE, Buffer, QueueDriver

from cerne.devices.virtio.queue import Chain, Queue, QueueError
from cerne.errors import DamagedError
from cerne.kvm.memory import GuestAddress, GuestMemory

BASE = 0x1000
DATA = 0x10000
TABLE = 0x8000


@pytest.fixture
def queue(memory: GuestMemory) -> Queue:
    return Queue(memory, 8)


@pytest.fixture
def driver(memory: GuestMemory, queue: Queue) -> QueueDriver:
    driver = QueueDriver(memory, BASE, 8)
    driver.set_up(queue)
    queue.indirect = True
    return driver


def pop(queue: Queue) -> Chain:
    chain = queue.pop()
    assert chain is not None
    return chain


def test_a_chain_gives_the_guests_own_bytes(
    memory: GuestMemory, queue: Queue, driver: QueueDriver
) -> None:
    memory.write(DATA, b"question")
    head = driver.add([Buffer(DATA, 8), Buffer(DATA + 64, 4, write=True)])
    chain = pop(queue)
    assert [bytes(view) for view in chain.readable] == [b"question"]
    chain.writable[0][:] = b"back"
    queue.push(chain.head, 4)
    assert (driver.take(), memory.read(DATA + 64, 4)) == ([(head, 4)], b"back")
    assert queue.pop() is None


def test_an_indirect_chain_is_the_same(
    memory: GuestMemory, queue: Queue, driver: QueueDriver
) -> None:
    driver.add_indirect(TABLE, [Buffer(DATA, 3), Buffer(DATA, 5), Buffer(DATA, 7, write=True)])
    chain = pop(queue)
    assert (chain.readable_size, chain.writable_size) == (8, 7)


def test_several_chains_are_popped_at_once_and_put_back(queue: Queue, driver: QueueDriver) -> None:
    heads = [driver.add([Buffer(DATA + size, size)]) for size in (1, 2, 3)]
    assert [chain.readable_size for chain in queue.pop_some(2)] == [1, 2]
    queue.put_back(1)
    assert [chain.head for chain in queue.pop_some(8)] == heads[1:]
    assert queue.pop_some(8) == []


def test_chains_before_a_broken_one_are_popped(queue: Queue, driver: QueueDriver) -> None:
    first = driver.add([Buffer(DATA, 1)])
    driver.add([Buffer(1 << 40, 1)])
    assert [chain.head for chain in queue.pop_some(8)] == [first]
    with pytest.raises(QueueError, match="not in memory"):
        queue.pop_some(8)


def test_indices_wrap_around(memory: GuestMemory, queue: Queue, driver: QueueDriver) -> None:
    driver.offered = driver.taken = 0xFFFD
    queue.restore(queue.state() | {"next_available": 0xFFFD, "next_used": 0xFFFD})
    memory.write_u16(driver.used + 2, 0xFFFD)
    for _ in range(6):
        head = driver.add([Buffer(DATA, 1)])
        queue.push(pop(queue).head, 0)
        assert driver.take() == [(head, 0)]


def one(driver: QueueDriver, address: int, length: int, flags: int = 0, following: int = 0) -> None:
    driver.describe(0, address, length, flags, following)
    driver.offer(0)


def loop(driver: QueueDriver) -> None:
    driver.describe(1, DATA, 1, NEXT, 0)
    one(driver, DATA, 1, NEXT, 1)


def nested(driver: QueueDriver) -> None:
    driver.add_indirect(TABLE, [Buffer(DATA, 16)])
    driver.memory.write_u16(TABLE + 12, INDIRECT)


def long_indirect(driver: QueueDriver) -> None:
    driver.add_indirect(TABLE, [Buffer(DATA, 1)] * 9)


def write_before_read(driver: QueueDriver) -> None:
    driver.add([Buffer(DATA, 1, write=True), Buffer(DATA, 1)])


def too_much(driver: QueueDriver) -> None:
    driver.offered += 8
    driver.offer(0)


HOSTILE: dict[str, Callable[[QueueDriver], None]] = {
    "loop": loop,
    "nested": nested,
    "long_indirect": long_indirect,
    "write_before_read": write_before_read,
    "available_index_jumps": too_much,
    "head_out_of_range": lambda driver: driver.offer(8),
    "next_out_of_range": lambda driver: one(driver, DATA, 1, NEXT, 8),
    "outside_memory": lambda driver: one(driver, 1 << 40, 1),
    "over_the_end": lambda driver: one(driver, (1 << 20) - 1, 2),
    "wrapping_length": lambda driver: one(driver, (1 << 64) - 1, 0xFFFFFFFF),
    "indirect_outside": lambda driver: one(driver, 1 << 40, 16, INDIRECT),
    "indirect_empty": lambda driver: one(driver, TABLE, 0, INDIRECT),
    "indirect_odd_length": lambda driver: one(driver, TABLE, 24, INDIRECT),
    "indirect_with_next": lambda driver: one(driver, TABLE, 16, INDIRECT | NEXT, 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_driver_may_do_is_refused(name: str, queue: Queue, driver: QueueDriver) -> None:
    HOSTILE[name](driver)
    with pytest.raises(QueueError):
        queue.pop()


def test_indirect_must_be_negotiated(queue: Queue, driver: QueueDriver) -> None:
    queue.indirect = False
    driver.add_indirect(TABLE, [Buffer(DATA, 1)])
    with pytest.raises(QueueError, match="not negotiated"):
        queue.pop()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("descriptors", BASE + 8),
        ("driver", BASE + 1),
        ("device", BASE + 2),
        ("device", (1 << 20) - 4),
        ("descriptors", (1 << 64) - 16),
        ("size", 3),
        ("size", 0),
        ("size", 16),
    ],
)
def test_rings_are_checked_before_use(
    queue: Queue, driver: QueueDriver, name: str, value: int
) -> None:
    queue.ready = False
    setattr(queue, name, value)
    with pytest.raises(QueueError):
        queue.ready = True
    assert not queue.ready
    with pytest.raises(DamagedError):
        queue.restore(queue.state() | {"ready": True})


def test_the_driver_may_refuse_interrupts(queue: Queue, driver: QueueDriver) -> None:
    assert not queue.should_notify()
    for unwanted in (False, True):
        driver.want_no_interrupt(unwanted)
        driver.add([Buffer(DATA, 1)])
        queue.push(pop(queue).head, 0)
        assert queue.should_notify() is not unwanted


def test_event_index_notifies_once_the_index_is_passed(queue: Queue, driver: QueueDriver) -> None:
    queue.event_index = True
    driver.want_interrupt_after(2)
    asked = []
    for _ in range(5):
        driver.add([Buffer(DATA, 1)])
        queue.push(pop(queue).head, 0)
        asked.append(queue.should_notify())
    assert asked == [False, False, True, False, False]


@pytest.mark.parametrize("event_index", [False, True])
def test_enabling_kicks_tells_of_chains_that_came_before(
    memory: GuestMemory, queue: Queue, driver: QueueDriver, event_index: bool
) -> None:
    queue.event_index = event_index
    queue.disable_notification()
    assert memory.read_u16(driver.used) == int(not event_index)
    assert queue.enable_notification() is False
    assert memory.read_u16(driver.used) == 0
    driver.add([Buffer(DATA, 1)])
    assert queue.enable_notification() is True
    queue.pop()
    queue.enable_notification()
    assert memory.read_u16(driver.end - 2) == int(event_index)


def test_a_queue_goes_on_from_its_state(
    memory: GuestMemory, queue: Queue, driver: QueueDriver
) -> None:
    driver.add([Buffer(DATA, 1)])
    queue.push(pop(queue).head, 0)
    driver.add([Buffer(DATA, 2)])
    other = Queue(memory, 8)
    other.restore(queue.state())
    assert other.state() == queue.state()
    assert pop(other).readable_size == 2


buffers = st.lists(
    st.builds(Buffer, st.integers(DATA, DATA + 999), st.integers(1, 99), st.booleans()),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(buffers, st.booleans()), max_size=30))
def test_every_chain_of_an_honest_driver_arrives_whole(
    chains: list[tuple[list[Buffer], bool]],
) -> None:
    with GuestMemory.anonymous([(GuestAddress(0), 1 << 20)]) as memory:
        queue = Queue(memory, 8)
        driver = QueueDriver(memory, BASE, 8)
        driver.set_up(queue)
        queue.indirect = True
        for given_buffers, indirect in chains:
            ordered = sorted(given_buffers, key=lambda buffer: buffer.write)
            head = driver.add_indirect(TABLE, ordered) if indirect else driver.add(ordered)
            chain = pop(queue)
            lengths = [len(view) for view in chain.readable + chain.writable]
            assert lengths == [buffer.length for buffer in ordered]
            queue.push(chain.head, chain.writable_size)
            assert driver.take() == [(head, chain.writable_size)]


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 1 << 32), st.integers(1, 32))
def test_random_rings_never_lead_outside_memory(seed: int, pages: int) -> None:
    with GuestMemory.anonymous([(GuestAddress(0), pages << 12)]) as memory:
        numbers = random.Random(seed)
        queue = Queue(memory, 8)
        driver = QueueDriver(memory, 0, 8)
        driver.set_up(queue)
        queue.indirect = numbers.random() < 0.9
        for index in range(8):
            flags = numbers.choice([0, 0, NEXT, NEXT, WRITE, INDIRECT])
            length = numbers.choice([16, 32, 128, numbers.getrandbits(32)])
            address = numbers.choice([0, 16, 1024, numbers.getrandbits(64)])
            driver.describe(index, address, length, flags, numbers.randrange(9))
            driver.offer(numbers.randrange(9))
        with contextlib.suppress(QueueError):
            while chain := queue.pop():
                assert len(chain.readable) + len(chain.writable) <= 8


@pytest.mark.parametrize("answered", [[], [0], [3, 1], [4, 2, 0], [0, 1, 2, 3, 4]])
def test_what_a_dead_backend_left_is_offered_again(
    queue: Queue, driver: QueueDriver, answered: list[int]
) -> None:
    for head in range(5):
        driver.describe(head, DATA, 16)
        driver.offer(head)
    for head in answered:
        queue.push(head, 0)
    queue.offer_again()
    heads = []
    while (chain := queue.pop()) is not None:
        heads.append(chain.head)
    assert sorted(heads + answered) == [0, 1, 2, 3, 4]


def test_after_many_chains_what_was_not_answered_is_offered_again(
    queue: Queue, driver: QueueDriver
) -> None:
    for head in range(8):
        driver.describe(head, DATA, 16)
    for number in range(1000):
        driver.offer(number % 8)
        if number >= 3:
            queue.push((number - 3) % 8, 0)
    queue.offer_again()
    assert [pop(queue).head for _ in range(3)] == [997 % 8, 998 % 8, 999 % 8]
    assert queue.pop() is None


def test_rings_that_cannot_be_are_not_lined_up(queue: Queue, driver: QueueDriver) -> None:
    driver.memory.write_u16(driver.available + 2, 9)
    with pytest.raises(QueueError, match="9 chains"):
        queue.offer_again()
