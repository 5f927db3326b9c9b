"""Guests that were not written for us: what they need, we have."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from tests.guests.harness import Running, running
from tests.guests.screen import screen

from cerne.units import MIB

_MEMTEST = Path("/boot/memtest86+x64.bin")
_PATIENCE = 240


def test_memtest_tests_the_memory(home: Path, emulated: bool) -> None:
    # It is a bzImage that is entered by the 32-bit protocol and goes to long mode by itself.
    if not _MEMTEST.exists():
        pytest.skip("memtest86+ is not installed: apt-get install memtest86+")
    with (
        running(
            home,
            _MEMTEST,
            memory=8 * MIB,
            command_line="console=ttyS0,115200 nobench nosm",
            emulated=emulated,
        ) as machine,
        socket.socket(socket.AF_UNIX) as console,
    ):
        console.connect(str(home / "console"))
        machine.wait_for(b"\x1b[2J")
        # Its menu: configuration, no temperature (which takes the x87), and back.
        console.sendall(b"160")
        _shown(machine, "Testing: 4MB - 8MB")
        # It has moved itself, to test where it was.
        shown = _shown(machine, "Testing: 0KB - 4MB")
    assert "Memtest86+" in shown
    assert "Memory  :    8MB" in shown
    assert "Errors: 0" in shown
    assert "1 Cores 1 Threads" in shown


def _shown(machine: Running, words: str) -> str:
    """The screen, once that is on it."""
    deadline = time.monotonic() + _PATIENCE
    while words not in (shown := screen(machine.console())):
        assert machine.process.poll() is None, machine.errors()
        assert time.monotonic() < deadline, shown
        time.sleep(0.2)
    return shown
