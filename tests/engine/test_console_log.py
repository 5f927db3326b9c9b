"""The limit of the console log that QEMU writes."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cerne.vmm.jail.log_limit import limit


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "the console's.log"


def _limit(log: Path, most: int) -> tuple[int, int]:
    """A process that limits the log, which may start no other, and the other end of its pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
            limit(os.open(log, os.O_WRONLY | os.O_APPEND), most, reading, 0.05)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    os.close(reading)
    return child, writing


def test_a_log_that_becomes_too_large_starts_again_and_the_process_ends_with_its_pipe(
    log: Path, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    with log.open("ab", buffering=0) as written:
        written.write(b"x" * 100)
        child, pipe = _limit(log, most=99)
        eventually(lambda: not log.stat().st_size)
        written.write(b"again")
        os.close(pipe)
        assert os.waitpid(child, 0)[1] == 0
    assert log.read_bytes() == b"again"


def test_a_log_within_its_limit_stays(log: Path) -> None:
    log.write_bytes(b"x" * 100)
    child, pipe = _limit(log, most=100)
    os.close(pipe)
    assert os.waitpid(child, 0)[1] == 0
    assert log.read_bytes() == b"x" * 100
