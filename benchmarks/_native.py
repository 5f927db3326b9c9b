"""Native machines for benchmarks: a guest of a few bytes, and the tiny image from a template."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from _measure import Sample
from cerne.engine.base import Instance
from cerne.engine.native import NativeEngine
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan, Nic, UserNic
from cerne.engine.select import choose_engine
from cerne.host.process import ProcessIdentity
from cerne.images import Image
from cerne.manager import Home
from cerne.units import MIB

# Writes bytes to its serial port for ever, in 64-bit mode.
SPEAKER = bytes.fromhex("66baf803b02eeeebfd")
# Answers each byte on its serial port with it.
ECHO = bytes.fromhex("66bafd03eca80174f766baf803eceeebef")

_READY_TIMEOUT = 120.0


class Machines:
    """Machines in a directory of their own; none is left at the end."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
        engine = choose_engine("native", Home.of_this_user().guest_speed)
        assert isinstance(engine, NativeEngine)
        self.engine = engine
        self._processes: list[ProcessIdentity] = []
        self._instances: dict[Path, Instance] = {}
        self._count = 0

    def plan(self, boot: KernelBoot, memory: int, nics: Sequence[Nic] = ()) -> LaunchPlan:
        """A plan of a new machine."""
        self._count += 1
        path = self.home / str(self._count)
        path.mkdir()
        name = f"bench{self._count}"
        return LaunchPlan(name, name, 1, memory, boot, (), tuple(nics), (), path, path)

    def small(self, code: bytes, memory: int) -> LaunchPlan:
        """A plan of a machine whose guest is nothing but this code."""
        return self.plan(KernelBoot(self._kernel(code), None, ""), memory)

    def linux(self, image: Image, memory: int) -> LaunchPlan:
        """A plan of a machine of an image without a disk."""
        boot = image.boot
        assert boot is not None
        kernel = KernelBoot(boot.kernel, boot.initrd, boot.command_line)
        return self.plan(kernel, memory, [UserNic("02:00:00:00:00:01")])

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        """Start a machine."""
        return self._kept(plan, self.engine.start(plan))

    def fork(
        self,
        plan: LaunchPlan,
        children: Sequence[LaunchPlan],
        disks: tuple[DiskPlan, ...] = (),
    ) -> list[ProcessIdentity]:
        """Fork one, which goes on with these disks."""
        forked = self._instances[plan.runtime].fork(disks, children)
        return [self._kept(child, each) for child, each in zip(children, forked, strict=True)]

    def _kept(self, plan: LaunchPlan, instance: Instance) -> ProcessIdentity:
        self._instances[plan.runtime] = instance
        self._processes.append(instance.process)
        return instance.process

    def another(self, plan: LaunchPlan) -> LaunchPlan:
        """The plan of another machine of the same kind."""
        assert isinstance(plan.boot, KernelBoot)
        return self.plan(plan.boot, plan.memory, plan.nics)

    def save(self, plan: LaunchPlan, disks: tuple[DiskPlan, ...] = ()) -> LaunchPlan:
        """Save one, which runs on with these disks; the plan of another that goes on from there."""
        other = self.another(plan)
        directory = other.runtime / "saved"
        directory.mkdir()
        self._instances[plan.runtime].save(directory, disks, resume=True)
        return replace(other, saved=directory)

    def end(self, processes: Sequence[ProcessIdentity]) -> None:
        """Kill machines."""
        for process in processes:
            process.send(signal.SIGKILL)
            process.wait(_READY_TIMEOUT)

    def end_all(self) -> None:
        """Kill all that were started."""
        self.end(self._processes)
        self._processes.clear()

    def close(self) -> None:
        """Leave nothing."""
        self.end_all()
        shutil.rmtree(self.home)

    def _kernel(self, code: bytes) -> Path:
        path = self.home / f"kernel-{code.hex()[:24]}"
        start = MIB
        ident = b"\x7fELF\x02\x01\x01" + bytes(9)
        head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        segment = struct.pack("<IIQQQQQQ", 1, 7, 120, 0, start, len(code), len(code), 4096)
        path.write_bytes(head + segment + code)
        return path


class Pauses(logging.Handler):
    """The pauses that the engine tells of, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        logger = logging.getLogger("cerne.engine.native")
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)
        self.seconds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take what the engine says."""
        found = re.search(r"paused .* for (\d+) us", record.getMessage())
        if found:
            self.seconds.append(int(found[1]) / 1e6)

    def sample(self) -> Sample:
        """Those since the last call."""
        taken, self.seconds = tuple(self.seconds), []
        return Sample(taken)


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    """Machines for the length of a block."""
    made = Machines()
    try:
        yield made
    finally:
        made.close()


_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw", re.MULTILINE)


def touch_memory(pid: int, size: int) -> None:
    """Write to all of a guest's memory that it has not written to itself, from outside."""
    text = Path(f"/proc/{pid}/maps").read_text()
    ranges = [tuple(int(end, 16) for end in m.groups()) for m in re.finditer(_MAPPING, text)]
    start, end = max(ranges, key=lambda each: each[1] - each[0])
    piece, nothing = os.urandom(MIB), bytes(MIB)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        for place in range(start, min(end, start + size) - MIB, MIB):
            if os.pread(memory.fileno(), MIB, place) == nothing:
                os.pwrite(memory.fileno(), piece, place)


def first_byte(log: Path, begun: float) -> float:
    """Seconds from `begun` until a guest has said something on its serial port."""
    while not log.exists() or log.stat().st_size == 0:
        time.sleep(0.0002)
    return time.perf_counter() - begun


def answer(plan: LaunchPlan, begun: float) -> float:
    """Seconds from `begun` until a guest has answered on its serial port."""
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(_READY_TIMEOUT)
        console.connect(str(plan.console_socket))
        console.sendall(b"x")
        console.recv(1)
    return time.perf_counter() - begun
