"""The VMM's process with guests of a few bytes: how they speak, end and crash."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guests.harness import Running, running

from cerne.engine.qmp import QmpClient

# 64-bit code, entered as Linux is. Ports: 0x3f8 is the serial port, 0x600 ACPI's sleep control,
# 0x64 the keyboard controller.
_SAY_HI = bytes.fromhex("66baf803 b068 ee b069 ee")
_POWER_OFF = bytes.fromhex("66ba0006 b034 ee f4")
_RESET = bytes.fromhex("b0fe e664 f4")
_TRIPLE_FAULT = bytes.fromhex("0f011c2500000000 0f0b")
_LOOP = bytes.fromhex("ebfe")
_ECHO = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec ee ebef")
_TOUCH_NOTHING = bytes.fromhex("b8000000d0 8b08 8908")


Run = Callable[[bytes], contextlib.AbstractContextManager[Running]]


@pytest.fixture
def run(home: Path, small_kernel: Callable[[Path, bytes], Path]) -> Run:
    """Runs a VMM with a guest that is nothing but this code."""
    return lambda code: running(home, small_kernel(home / "kernel", code))


def test_a_guest_speaks_and_powers_off(run: Run, kvm_device: Path) -> None:
    with run(_SAY_HI + _POWER_OFF) as machine:
        assert machine.end() == (True, "the guest shut down")
        assert machine.console() == b"hi"
        assert machine.process.returncode == 0


def test_a_guest_resets(run: Run, kvm_device: Path) -> None:
    with run(_RESET) as machine:
        assert machine.end() == (True, "the guest rebooted")


def test_a_triple_fault_is_a_crash_with_registers(run: Run, kvm_device: Path) -> None:
    with run(_TRIPLE_FAULT) as machine:
        orderly, reason = machine.end()
        assert not orderly
        assert reason.startswith("the guest crashed")
        assert machine.process.stderr is not None
        assert b"rip=0x1000" in machine.process.stderr.read()


def test_memory_that_is_not_there_harms_nobody(run: Run, kvm_device: Path) -> None:
    with run(_TOUCH_NOTHING + _SAY_HI + _POWER_OFF) as machine:
        assert machine.end() == (True, "the guest shut down")


def test_it_is_paused_resumed_and_told_to_quit(run: Run, kvm_device: Path) -> None:
    with run(_LOOP) as machine:
        with QmpClient(machine.qmp) as client:
            assert client.status() == "running"
            client.stop()
            assert client.status() == "paused"
            client.cont()
            assert client.status() == "running"
            client.quit()
        assert machine.end() == (True, "it was told to quit")


def test_its_console_goes_both_ways(run: Run, kvm_device: Path) -> None:
    with run(_ECHO) as machine, QmpClient(machine.qmp) as client:
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(str(machine.home / "console"))
            console.settimeout(20)
            console.sendall(b"echoed")
            heard = b""
            while len(heard) < 6:
                heard += console.recv(100)
            assert heard == b"echoed"
        client.quit()
        machine.end()
        assert machine.console() == b"echoed"


def test_a_kernel_that_is_none_is_refused_in_words(run: Run, kvm_device: Path) -> None:
    with run(b"") as machine:
        machine.process.wait(30)
        assert machine.process.stderr is not None
        said = machine.process.stderr.read()
        assert b"nothing to load" in said
        assert b"Traceback" not in said
