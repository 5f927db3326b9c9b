"""A console's log is bounded, and nothing that becomes of it stops the guest."""

from __future__ import annotations

import os
from pathlib import Path

from cerne.vmm.console_log import LARGEST_LOG, ConsoleLog


def test_a_log_goes_on_and_begins_anew_before_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(bytes(LARGEST_LOG - 3))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    log = ConsoleLog(descriptor)
    log.write(b"abc")
    assert path.stat().st_size == LARGEST_LOG
    log.write(b"d")
    log.write(b"e")
    assert path.read_bytes() == b"de"
    os.close(descriptor)


def test_a_full_disk_does_not_stop_the_guest() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    ConsoleLog(descriptor).write(b"abc")
    os.close(descriptor)
