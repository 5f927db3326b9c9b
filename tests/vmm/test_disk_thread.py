"""The threads of disks: one that hangs stops no other, and they rest when they are told to."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

import pytest

from cerne.devices.virtio.block import BlockDevice
from cerne.errors import EngineError
from cerne.vmm.disk_thread import DiskThread, Rest, end_all
from cerne.vmm.loop import Loop

_PATIENCE = 60.0


class _Disk:
    """A disk without bytes."""

    size = 512

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Nothing is read."""

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Nothing is kept."""

    def flush(self) -> None:
        """Nothing is kept."""

    def discard(self, offset: int, length: int) -> None:
        """Nothing is kept."""

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Nothing is open."""


class _Served:
    """Threads of disks with a doorbell each, which a test serves by functions."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.threads: list[DiskThread] = []
        self._bells: list[int] = []

    def add(self, serve: Callable[[], None]) -> int:
        """Add a disk; return its number."""
        number, bell = len(self.threads), os.eventfd(0, os.EFD_NONBLOCK)
        thread = DiskThread(f"disk {number}", self.loop, BlockDevice(_Disk()))

        def answer() -> None:
            os.eventfd_read(bell)
            serve()

        thread.watch(bell, answer)
        thread.start()
        thread.release()
        self.threads.append(thread)
        self._bells.append(bell)
        return number

    def ring(self, number: int) -> None:
        os.eventfd_write(self._bells[number], 1)

    def rest(self, patience: float, during: Callable[[], None] = lambda: None) -> str:
        """Let all rest during a call of a function; return the error, if any."""
        said: list[EngineError | None] = []

        def then(error: EngineError | None) -> None:
            said.append(error)
            if error is None:
                during()
            self.loop.stop()

        Rest(self.loop, self.threads).begin(patience, then)
        if not said:
            self.loop.run()
        self.loop._running = True
        (error,) = said
        return "" if error is None else error.message

    def close(self) -> None:
        assert end_all(self.threads, _PATIENCE) == []
        for thread in self.threads:
            thread.close()
        self.loop.close()
        for bell in self._bells:
            os.close(bell)


@pytest.fixture
def served() -> Iterator[_Served]:
    made = _Served()
    yield made
    made.close()


def test_a_disk_that_hangs_stops_no_other_disk(served: _Served) -> None:
    hangs, may_answer, works = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        assert may_answer.wait(_PATIENCE)

    hung, good = served.add(hang), served.add(works.set)
    served.ring(hung)
    assert hangs.wait(_PATIENCE)
    served.ring(good)
    assert works.wait(_PATIENCE)
    assert served.rest(0.01) == "disk 0 has not finished a request within 0.01 s"
    works.clear()
    served.ring(good)
    assert works.wait(_PATIENCE)
    may_answer.set()
    assert served.rest(_PATIENCE) == ""
    hangs.clear()
    may_answer.clear()
    served.ring(hung)
    assert hangs.wait(_PATIENCE)
    assert end_all(served.threads, 1) == [served.threads[hung]]
    may_answer.set()


def test_a_disk_that_rests_serves_nothing(served: _Served) -> None:
    works = threading.Event()
    number = served.add(works.set)

    def during() -> None:
        served.ring(number)
        assert not works.wait(0.05)

    assert served.rest(_PATIENCE, during) == ""
    assert works.wait(_PATIENCE)


def test_no_lock_is_held_while_disks_rest(served: _Served) -> None:
    """Because the process may fork then, and the child has none of the threads."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    numbers = [served.add(lambda: None) for _ in range(3)]

    def look() -> None:
        for thread in served.threads:
            thread.hold_on()
        free = [thread._change.acquire(blocking=False) for thread in served.threads]
        for thread, is_free in zip(served.threads, free, strict=True):
            if is_free:
                thread._change.release()
            thread.release()
        assert free == [True] * len(numbers)

    try:
        for _ in range(200):
            for number in numbers:
                served.ring(number)
            assert served.rest(_PATIENCE, look) == ""
    finally:
        sys.setswitchinterval(before)


def test_a_fault_in_a_disks_thread_ends_the_machine_as_one_on_the_loop_does(
    served: _Served,
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a fault")

    served.ring(served.add(fail))
    with pytest.raises(ZeroDivisionError, match="a fault"):
        served.loop.run()
