"""The VMM's process with guests of a few bytes: how they speak, end and crash."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cerne.engine.opened import Opened
from cerne.engine.qmp import QmpClient
from cerne.units import MIB
from cerne.vmm.config import BootConfig, VmmConfig

# 64-bit code, entered as Linux is. Ports: 0x3f8 is the serial port, 0x600 ACPI's sleep control,
# 0x64 the keyboard controller.
_SAY_HI = bytes.fromhex("66baf803 b068 ee b069 ee")
_POWER_OFF = bytes.fromhex("66ba0006 b034 ee f4")
_RESET = bytes.fromhex("b0fe e664 f4")
_TRIPLE_FAULT = bytes.fromhex("0f011c2500000000 0f0b")
_LOOP = bytes.fromhex("ebfe")
_ECHO = bytes.fromhex("66bafd03 ec a801 74f7 66baf803 ec ee ebef")
_TOUCH_NOTHING = bytes.fromhex("b8000000d0 8b08 8908")


@dataclass
class _Running:
    """A VMM's process and where it writes."""

    home: Path
    process: subprocess.Popen[bytes]

    @property
    def qmp(self) -> Path:
        return self.home / "qmp"

    def end(self) -> tuple[bool, str]:
        """Wait for its end; how it says that the machine ended."""
        self.process.wait(30)
        said = json.loads((self.home / "ending").read_text())
        return said["orderly"], said["reason"]

    def console(self) -> bytes:
        return (self.home / "console.log").read_bytes()


Running = Callable[[bytes], contextlib.AbstractContextManager[_Running]]


@pytest.fixture
def running(home: Path, small_kernel: Callable[[Path, bytes], Path]) -> Running:
    """Runs a VMM with a guest that is nothing but this code."""
    return lambda code: _running(home, small_kernel(home / "kernel", code))


@contextlib.contextmanager
def _running(home: Path, kernel_file: Path) -> Iterator[_Running]:
    with Opened() as opened:
        kernel = opened.existing(kernel_file)
        config = VmmConfig(
            name="small",
            identity="small",
            cpus=1,
            memory=16 * MIB,
            origin=BootConfig(kernel, None, ""),
            qmp=opened.listening(home / "qmp"),
            console=opened.listening(home / "console"),
            console_log=opened.log(home / "console.log"),
            agents=(opened.listening(home / "agent0"),),
            ending=opened.new(home / "ending"),
        )
        config.write(home / "config")
        process = subprocess.Popen(
            [sys.executable, "-m", "cerne.vmm", str(home / "config")],
            pass_fds=opened.descriptors,
            stderr=subprocess.PIPE,
        )
    try:
        yield _Running(home, process)
    finally:
        process.kill()
        process.communicate()


def test_a_guest_speaks_and_powers_off(running: Running, kvm_device: Path) -> None:
    with running(_SAY_HI + _POWER_OFF) as machine:
        assert machine.end() == (True, "the guest shut down")
        assert machine.console() == b"hi"
        assert machine.process.returncode == 0


def test_a_guest_resets(running: Running, kvm_device: Path) -> None:
    with running(_RESET) as machine:
        assert machine.end() == (True, "the guest rebooted")


def test_a_triple_fault_is_a_crash_with_registers(running: Running, kvm_device: Path) -> None:
    with running(_TRIPLE_FAULT) as machine:
        orderly, reason = machine.end()
        assert not orderly
        assert reason.startswith("the guest crashed")
        assert machine.process.stderr is not None
        assert b"rip=0x1000" in machine.process.stderr.read()


def test_memory_that_is_not_there_harms_nobody(running: Running, kvm_device: Path) -> None:
    with running(_TOUCH_NOTHING + _SAY_HI + _POWER_OFF) as machine:
        assert machine.end() == (True, "the guest shut down")


def test_it_is_paused_resumed_and_told_to_quit(running: Running, kvm_device: Path) -> None:
    with running(_LOOP) as machine:
        with QmpClient(machine.qmp) as client:
            assert client.status() == "running"
            client.stop()
            assert client.status() == "paused"
            client.cont()
            assert client.status() == "running"
            client.quit()
        assert machine.end() == (True, "it was told to quit")


def test_its_console_goes_both_ways(running: Running, kvm_device: Path) -> None:
    with running(_ECHO) as machine, QmpClient(machine.qmp) as client:
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


def test_a_kernel_that_is_none_is_refused_in_words(running: Running, kvm_device: Path) -> None:
    with running(b"") as machine:
        machine.process.wait(30)
        assert machine.process.stderr is not None
        said = machine.process.stderr.read()
        assert b"nothing to load" in said
        assert b"Traceback" not in said
