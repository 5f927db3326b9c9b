"""The processes that serve devices of a machine: they come back when they die, and go when it ends.

Here the test is the machine: it has the connection, the leash and the address.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.devices.test_vhost_user import Served

from cerne.devices.vhost_user.device import VhostUserBlock, VhostUserFs
from cerne.engine.backends import disk_backend, share_backend
from cerne.engine.base import DiskPlan, KernelBoot, LaunchPlan, SharePlan
from cerne.engine.opened import Opened
from cerne.host.programs import find_program
from cerne.kvm.memory import GuestAddress, GuestMemory
from cerne.units import MIB
from cerne.vmm.config import BackendConfig

Eventually = Callable[[Callable[[], bool]], None]


@dataclass
class Kept:
    """A backend's end in the test's hands."""

    config: BackendConfig
    connected: bool = False

    def connect(self) -> socket.socket:
        """The first connection, and others by the address: a machine can look up no name."""
        if not self.connected:
            self.connected = True
            return socket.socket(fileno=os.dup(self.config.link))
        link = socket.socket(socket.AF_UNIX)
        link.connect(f"/proc/self/fd/{self.config.address}")
        return link

    def processes(self) -> dict[int, str]:
        """The keepers that this process has started, and all below them, by their commands."""
        parents, lines = {}, {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                lines[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
                parents[int(entry.name)] = int(fields[1])
        kept = {
            pid
            for pid, line in lines.items()
            if "keeper.py" in line and parents[pid] == os.getpid()
        }
        while below := {pid for pid in lines if parents[pid] in kept} - kept:
            kept |= below
        return {pid: lines[pid] for pid in kept if lines[pid]}

    def backends(self) -> list[int]:
        return [pid for pid, line in self.processes().items() if "keeper.py" not in line]

    def die(self) -> None:
        for pid in self.backends():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _plan(home: Path, disks: tuple[DiskPlan, ...], shares: tuple[SharePlan, ...]) -> LaunchPlan:
    boot = KernelBoot(home / "kernel", None, "")
    return LaunchPlan("m", "m", 2, 16 * MIB, boot, disks, (), shares, home, home)


def _require(program: str) -> None:
    if find_program(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.fixture
def opened() -> Iterator[Opened]:
    with Opened() as opened:
        yield opened


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.shared([(GuestAddress(0), 1 << 20)]) as memory:
        yield memory


@pytest.fixture
def disk(home: Path, opened: Opened) -> Kept:
    _require("qemu-storage-daemon")
    image = home / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", str(image), str(MIB)], check=True)
    image.chmod(0o600)
    config = disk_backend(_plan(home, (DiskPlan(image, "vmdk"),), ()), 0, opened)
    return Kept(config)


def test_a_disk_of_another_format_is_served_and_kept_so(
    disk: Kept, memory: GuestMemory, eventually: Eventually, home: Path
) -> None:
    make = partial(VhostUserBlock, queues=4, patience=30)
    with contextlib.closing(Served(memory, disk, make)) as served:
        served.start()
        served.offer(1, 3, b"z" * 512)
        assert served.answer() == (0, b"")
        (pid,) = disk.backends()
        if os.geteuid() == 0:
            status = Path(f"/proc/{pid}/status").read_text()
            assert "CapPrm:\t0000000000000000" in status
            assert "NoNewPrivs:\t1" in status
        served.kill()
        served.offer(0, 3, room=512)
        # Its keeper has started another one.
        served.device.reconnect(disk.connect())
        assert served.answer(512) == (0, b"z" * 512)
    with socket.socket(fileno=os.dup(disk.config.leash or -1)) as leash:
        leash.send(b"end")
        # It may have left without reading, where its backend had just died.
        with contextlib.suppress(ConnectionResetError):
            assert leash.recv(1) == b""
    eventually(lambda: disk.processes() == {})


def test_a_disk_goes_with_a_machine_that_was_killed(
    disk: Kept, opened: Opened, eventually: Eventually
) -> None:
    assert disk.processes()
    opened.__exit__()
    opened._descriptors.clear()
    eventually(lambda: disk.processes() == {})


def test_a_disk_that_cannot_be_says_so_and_ends(
    home: Path, opened: Opened, eventually: Eventually
) -> None:
    _require("qemu-storage-daemon")
    image = home / "image"
    image.write_bytes(bytes(MIB))
    config = disk_backend(_plan(home, (DiskPlan(image, "vmdk"),), ()), 0, opened)
    kept = Kept(config)
    eventually(lambda: kept.processes() == {})
    assert "invalid VMDK" in (home / "disk0.log").read_text()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_directory_is_served_and_goes_with_its_machine(
    home: Path, opened: Opened, root: None, eventually: Eventually, read_only: bool
) -> None:
    _require("virtiofsd")
    source = home / "a,b"
    source.mkdir()
    plan = _plan(home, (), (SharePlan("share0", source, read_only),))
    config = share_backend(plan, 0, opened)
    kept = Kept(config)
    device = VhostUserFs(socket.socket(fileno=os.dup(config.link)), "share0", patience=30)
    eventually(lambda: len(kept.backends()) >= 2)
    mounts = Path(f"/proc/{kept.backends()[-1]}/mountinfo").read_text()
    assert (" ro," in mounts.splitlines()[0]) == read_only
    device.close()
    opened.__exit__()
    opened._descriptors.clear()
    eventually(lambda: kept.processes() == {})
