"""What processes use of the host, seen at processes that do a known thing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.waiting import eventually

from cerne.host.process import ProcessIdentity
from cerne.host.usage import cpu_seconds, proportional_memory, waited_seconds
from cerne.units import MIB

SHARED = 256 * MIB


# The test's own process is as large as what they share.
_TWO_WITH_SHARED_PAGES = f"""
import mmap, os, sys
memory = mmap.mmap(-1, {SHARED})
memory.write(b"x" * {SHARED})
pids = []
for _ in range(2):
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        sum(memory[place] for place in range(0, {SHARED}, mmap.PAGESIZE))
        os.write(told, b".")
        os.read(0, 1)
        os._exit(0)
    os.read(ready, 1)
    pids.append(child)
memory.close()
print(*pids, flush=True)
os.read(0, 1)
for child in pids:
    os.waitpid(child, 0)
"""


@pytest.fixture
def sharing() -> Iterator[list[ProcessIdentity]]:
    """Two processes that hold the same pages, and wait."""
    command = [sys.executable, "-I", "-S", "-c", _TWO_WITH_SHARED_PAGES]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = map(int, parent.stdout.readline().split())
        yield [found for pid in pids if (found := ProcessIdentity.of(pid))]


def test_a_page_that_processes_share_counts_once(sharing: list[ProcessIdentity]) -> None:
    assert len(sharing) == 2
    one = proportional_memory(sharing[:1])
    both = proportional_memory(sharing)
    assert one is not None
    assert both is not None
    assert SHARED // 2 <= one < SHARED
    assert SHARED <= both < SHARED + SHARED // 2


def test_a_process_that_has_ended_counts_for_nothing() -> None:
    child = subprocess.Popen(["sleep", "60"])
    gone = ProcessIdentity.of(child.pid)
    child.kill()
    child.wait()
    assert gone is not None
    assert cpu_seconds([gone]) == 0
    assert proportional_memory([gone]) == 0
    assert waited_seconds(gone.pid, [gone.pid]) is None


def test_processor_time_is_that_of_all() -> None:
    code = "while True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as busy:
        process = ProcessIdentity.of(busy.pid)
        assert process is not None
        eventually(lambda: cpu_seconds([process]) > 0.05)
        once = cpu_seconds([process])
        assert cpu_seconds([process, process]) >= 2 * once
        busy.kill()


def test_a_thread_that_waits_for_a_processor_is_seen() -> None:
    """Three busy processes share one processor, so that each waits for two thirds of the time."""
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{cpu}])\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    try:
        eventually(lambda: all((waited_seconds(p.pid, [p.pid]) or 0) > 0.05 for p in busy))
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_threads_that_are_not_those_of_the_process_are_unknown() -> None:
    """Their numbers are said by a process that a guest may have taken over."""
    assert waited_seconds(os.getpid(), [1]) is None
    assert waited_seconds(os.getpid(), []) is None
