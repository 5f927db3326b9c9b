"""Saving machines of QEMU and going on with them, with a guest of a few bytes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.waiting import PATIENCE

from cerne.engine.base import Instance
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan
from cerne.engine.qemu import saving
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.engine import QemuEngine
from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.balloon import leave_memory
from cerne.engine.saved import MEMORY_FILE, STATE_FILE
from cerne.errors import DamagedError, InputError, StateError, StorageError
from cerne.host.process import ProcessIdentity
from cerne.storage.overlay import create_overlay
from cerne.units import MIB

# Entered in 32-bit mode (PVH). Says 255 as it begins, and answers each byte on its serial port with
# a byte of its memory, one more after each "i".
_COUNTER = bytes.fromhex(
    "66baf803b0ffee66bafd03eca80174f766baf803ec3c697506fe0500002000a00000200066baf803eeebdc"
)
HALTED = bytes.fromhex("66baf803b0ffeef4ebfd")
"""Says 255, and halts: a guest that does nothing else."""
# A note that tells where to enter (Xen's XEN_ELFNOTE_PHYS32_ENTRY, which PVH has).
_NOTE = bytes.fromhex("04000000040000001200000058656e0000001000")


def _pvh_kernel(path: Path, code: bytes) -> Path:
    start = MIB
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, start, 52, 0, 0, 52, 32, 2, 0, 0, 0)
    code_at = 52 + 2 * 32
    note_at = code_at + len(code)
    load = struct.pack("<IIIIIIII", 1, code_at, start, start, len(code), 4096, 7, 1)
    note = struct.pack("<IIIIIIII", 4, note_at, 0, 0, len(_NOTE), len(_NOTE), 4, 1)
    path.write_bytes(head + load + note + code + _NOTE)
    return path


class Machines:
    """Machines of a small guest, the counting one; none is left when a test is over."""

    def __init__(self, home: Path, code: bytes = _COUNTER) -> None:
        self.engine = QemuEngine(Accelerator.TCG)
        self.saved = home / "saved"
        self.saved.mkdir()
        self._home = home
        self._kernel = _pvh_kernel(home / "kernel", code)
        self._instances: dict[Path, Instance] = {}

    def plan(self, name: str) -> LaunchPlan:
        runtime, logs = self._home / f"r{name}", self._home / f"l{name}"
        for directory in (runtime, logs):
            directory.mkdir(exist_ok=True)
        boot = KernelBoot(self._kernel, None, "")
        return LaunchPlan(name, name, 1, 64 * MIB, boot, (), (), (), runtime, logs)

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        self.engine.require(plan)
        self._instances[plan.runtime] = self.engine.start(plan)
        while plan.saved is None and b"\xff" not in plan.console_log.read_bytes():
            time.sleep(0.01)  # the firmware speaks first
        return self.instance(plan).process

    def say(self, plan: LaunchPlan, words: bytes) -> int:
        """What a machine answers to the last of these bytes."""
        heard = b""
        with socket.socket(socket.AF_UNIX) as console:
            console.settimeout(PATIENCE)
            console.connect(str(plan.console_socket))
            for word in words:
                console.sendall(bytes([word]))
                heard += console.recv(1)
        return heard[-1]

    def instance(self, plan: LaunchPlan) -> Instance:
        """The machine that was started by this plan, or by another with its directories."""
        return self._instances[plan.runtime]

    def close(self) -> None:
        for instance in self._instances.values():
            instance.kill()
            instance.wait(PATIENCE)


@pytest.fixture
def machines(home: Path, qemu: Path) -> Iterator[Machines]:
    with contextlib.closing(Machines(home)) as made:
        yield made


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A file system with no room for a machine's state; skips where none may be mounted."""
    place = home / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("apart", [True, False])
def test_a_saved_machine_goes_on_many_times(machines: Machines, apart: bool) -> None:
    plan = machines.plan("a")
    if apart:
        plan = replace(plan, memory_file=machines.saved / MEMORY_FILE)
    first = machines.start(plan)
    assert machines.say(plan, b"ii") == 2
    machines.instance(plan).save(machines.saved, (), resume=False)
    first.send(signal.SIGKILL)
    for name in "bc":
        clone = replace(machines.plan(name), saved=machines.saved)
        machines.start(clone)
        assert machines.say(clone, b"i") == 3


def test_no_machine_may_write_to_the_memory_that_others_have_too(machines: Machines) -> None:
    memory = machines.saved / MEMORY_FILE
    plan = replace(machines.plan("a"), memory_file=memory)
    first = machines.start(plan)
    machines.instance(plan).save(machines.saved, (), resume=False)
    first.send(signal.SIGKILL)
    clone = replace(machines.plan("b"), saved=machines.saved)
    process = Path(f"/proc/{machines.start(clone).pid}")
    opened = [each.name for each in (process / "fd").iterdir() if _is(each, memory)]
    assert opened
    for name in opened:
        flags = int((process / "fdinfo" / name).read_text().split("flags:")[1].split()[0], 8)
        assert flags & os.O_ACCMODE == os.O_RDONLY
    there = process / "root" / memory.relative_to("/")
    assert os.statvfs(there).f_flag & os.ST_RDONLY
    mappings = [line for line in (process / "maps").read_text().splitlines() if "/memory" in line]
    assert mappings
    assert all(line.split()[1] == "rw-p" for line in mappings)


def _is(opened: Path, file: Path) -> bool:
    # Sockets and others are of no file system that may be asked.
    try:
        return opened.samefile(file)
    except OSError:
        return False


def test_a_machine_runs_on_with_its_new_disk(machines: Machines, home: Path) -> None:
    base = home / "base.raw"
    base.write_bytes(bytes(MIB))
    create_overlay(base, "raw", home / "root.qcow2")
    plan = replace(machines.plan("a"), disks=(DiskPlan(home / "root.qcow2", "qcow2"),))
    process = machines.start(plan)
    for number in range(2):
        # As the manager does: the file in use gets another name, and an empty one its own.
        layer = (home / "root.qcow2").rename(home / f"layer{number}.qcow2")
        create_overlay(layer, "qcow2", home / "root.qcow2")
        shutil.rmtree(machines.saved)
        machines.saved.mkdir()
        machines.instance(plan).save(machines.saved, plan.disks, resume=True)
        assert machines.say(plan, b"i") == number + 1
        device = "/machine/peripheral/vd0/virtio-backend"
        written = f"write -P {number + 1} {number * 64}k 4k"
        with QmpClient(plan.qmp_socket) as qmp:
            said = qmp.execute(
                "human-monitor-command", {"command-line": f'qemu-io -d {device} "{written}"'}
            )
            assert "error" not in str(said).lower()
            assert qmp.status() == "running"
    process.send(signal.SIGKILL)
    process.wait(PATIENCE)
    assert _holds(home / "root.qcow2", 0, 1)
    assert _holds(home / "root.qcow2", 64, 2)
    assert _holds(home / "layer1.qcow2", 0, 1)
    assert _holds(home / "layer1.qcow2", 64, 0)
    assert _holds(home / "layer0.qcow2", 0, 0)


def _holds(disk: Path, place: int, pattern: int) -> bool:
    """Whether 4 KiB at a place (in KiB) of a disk are this byte."""
    read = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {pattern} {place}k 4k", str(disk)]
    done = subprocess.run(read, capture_output=True, text=True, check=True)
    return "failed" not in done.stdout


@pytest.mark.parametrize("name", [STATE_FILE, MEMORY_FILE])
def test_what_was_altered_is_refused(machines: Machines, name: str) -> None:
    plan = replace(machines.plan("a"), memory_file=machines.saved / MEMORY_FILE)
    machines.start(plan)
    machines.instance(plan).save(machines.saved, (), resume=False)
    path = machines.saved / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="altered"):
        machines.start(replace(machines.plan("b"), saved=machines.saved))


def test_a_machine_that_cannot_be_saved_runs_on(machines: Machines, home: Path) -> None:
    plan = machines.plan("a")
    machines.start(plan)
    with pytest.raises(StorageError):
        machines.instance(plan).save(home / "nowhere", (), resume=True)
    assert machines.say(plan, b"i") == 1


@pytest.mark.usefixtures("root")
def test_a_disk_that_is_full_is_told_and_the_machine_runs_on(
    machines: Machines, small_disk: Path
) -> None:
    plan = machines.plan("a")
    machines.start(plan)
    with pytest.raises(StorageError, match="No space left"):
        machines.instance(plan).save(small_disk, (), resume=True)
    assert machines.say(plan, b"i") == 1
    machines.instance(plan).save(machines.saved, (), resume=True)
    assert machines.say(plan, b"i") == 2


def test_saving_that_is_broken_off_does_not_stop_the_machine_later(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(qmp: QmpClient) -> None:
        raise KeyboardInterrupt

    plan = machines.plan("a")
    machines.start(plan)
    with monkeypatch.context() as patched:
        patched.setattr(saving, "_wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            machines.instance(plan).save(machines.saved, (), resume=True)
    with QmpClient(plan.qmp_socket) as qmp:
        assert qmp.status() == "running"
        status = qmp.execute("query-migrate")
        assert isinstance(status, dict)
        assert status["status"] in ("cancelled", "completed", "failed")
    assert machines.say(plan, b"i") == 1
    machines.instance(plan).save(machines.saved, (), resume=True)
    assert machines.say(plan, b"i") == 2


def test_a_fork_is_refused(machines: Machines) -> None:
    plan = machines.plan("a")
    machines.start(plan)
    with pytest.raises(InputError, match="does not fork"):
        machines.instance(plan).fork((), [machines.plan("b")])


def test_a_paused_machine_is_saved_twice_and_stays_paused(machines: Machines) -> None:
    plan = machines.plan("a")
    machines.start(plan)
    assert machines.say(plan, b"i") == 1
    with QmpClient(plan.qmp_socket) as qmp:
        qmp.stop()
    for _ in range(2):
        machines.instance(plan).save(machines.saved, (), resume=True)
        with QmpClient(plan.qmp_socket) as qmp:
            assert qmp.status() == "paused"
    with QmpClient(plan.qmp_socket) as qmp:
        qmp.cont()
    assert machines.say(plan, b"i") == 2


def test_a_machine_without_a_balloon_goes_on_without_one(machines: Machines, home: Path) -> None:
    template = replace(machines.plan("a"), memory_file=machines.saved / MEMORY_FILE)
    machines.start(template)
    machines.instance(template).save(machines.saved, (), resume=False)
    first = replace(machines.plan("b"), saved=machines.saved)
    machines.start(first)
    # Its memory is in no file of its own any more, and it may be saved with it.
    again = home / "again"
    again.mkdir()
    machines.instance(first).save(again, (), resume=False)
    second = replace(machines.plan("c"), saved=again)
    machines.start(second)
    with QmpClient(second.qmp_socket) as qmp, pytest.raises(StateError, match="no balloon"):
        leave_memory(qmp, 32 * MIB, "c")


def test_a_machine_with_a_balloon_keeps_it(machines: Machines) -> None:
    plan = machines.plan("a")
    machines.start(plan)
    machines.instance(plan).save(machines.saved, (), resume=False)
    other = replace(machines.plan("b"), saved=machines.saved)
    machines.start(other)
    with QmpClient(other.qmp_socket) as qmp:
        leave_memory(qmp, 32 * MIB, "b")
