"""The limit of the console log that QEMU writes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.engine.qemu.console_log import limiting_command


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "the console's.log"


def _limit(log: Path, most: int) -> tuple[subprocess.Popen[bytes], int]:
    reading, writing = os.pipe()
    command = limiting_command(log, reading, 0.05, most)
    started = subprocess.Popen(command, pass_fds=[reading])
    os.close(reading)
    return started, writing


def test_a_log_that_becomes_too_large_starts_again_and_the_command_ends_with_its_pipe(
    log: Path,
) -> None:
    with log.open("ab", buffering=0) as written:
        written.write(b"x" * 100)
        started, pipe = _limit(log, most=99)
        with started:
            while log.stat().st_size:
                assert started.poll() is None
            written.write(b"again")
            assert log.read_bytes() == b"again"
            os.close(pipe)
            assert started.wait(PATIENCE) == 0
    assert log.read_bytes() == b"again"


def test_a_log_within_its_limit_stays(log: Path) -> None:
    log.write_bytes(b"x" * 100)
    started, pipe = _limit(log, most=100)
    os.close(pipe)
    assert started.wait(PATIENCE) == 0
    assert log.read_bytes() == b"x" * 100
