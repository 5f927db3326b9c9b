"""What the manager's tests share."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cerne.client import Host
from cerne.client.local import LocalHost
from cerne.engine.base import (
    Activity,
    Capabilities,
    Ending,
    GuestMemoryUse,
    Instance,
    RunState,
    ShareType,
)
from cerne.engine.plan import DiskPlan, LaunchPlan, Nic
from cerne.engine.record import InstanceRecord
from cerne.errors import CerneError, EngineError
from cerne.guest import GuestAgent
from cerne.host.cell import Cell
from cerne.host.cell_note import NOTE
from cerne.host.members import MACHINE, Members, start_member
from cerne.host.process import ProcessIdentity
from cerne.manager import Home, Machine, Manager
from cerne.manager.store import Record, State
from cerne.spec.machine import machine_spec
from cerne.spec.resources import Resources
from cerne.units import MIB


@pytest.fixture
def new_record() -> Callable[[str], Record]:
    """Makes records of machines that were just defined."""

    def make(name: str) -> Record:
        return Record(
            id=uuid.uuid4().hex[:12],
            name=name,
            spec="{}",
            image="tiny",
            digest="sha256:0",
            cpus=1,
            memory=512 * MIB,
            state=State.DEFINED,
            reason="",
            engine="",
            process=None,
            created=time.time(),
            started=None,
            ready=None,
        )

    return make


class FakeInstance:
    """A sleeping process; what it was asked is in `FakeEngine.asked`, and all of it succeeds."""

    def __init__(self, engine: FakeEngine, record: InstanceRecord) -> None:
        self.engine = engine
        self.record = record

    @property
    def process(self) -> ProcessIdentity:
        return self.record.process

    @property
    def _paused(self) -> Path:
        return self.record.runtime / "paused"

    @property
    def _plugged(self) -> Path:
        """Where it keeps what is in its slots: it outlives the engine."""
        return self.record.runtime / "plugged"

    def status(self) -> RunState:
        return RunState.PAUSED if self._paused.exists() else RunState.RUNNING

    def pause(self) -> None:
        self._ask("pause")
        self._paused.touch()

    def resume(self) -> None:
        self._ask("resume")
        self._paused.unlink(missing_ok=True)

    def power_button(self) -> None:
        self._ask("power_button")

    def break_off_saving(self) -> None:
        self._ask("break_off_saving")

    def save(self, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool) -> None:
        (directory / "memory").write_bytes(bytes(self.engine.saved_size))
        if self.engine.failure is not None:
            raise self.engine.failure
        (directory / "state").write_text(self.record.machine_id)

    def fork(self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]) -> list[Instance]:
        assert self.engine.forks
        return [self.engine.start(child) for child in children]

    def plug(self, device: DiskPlan | Nic) -> None:
        taken = self.plugged()
        assert device.slot is not None
        assert device.slot not in taken
        if self.engine.failure is not None:
            raise self.engine.failure
        self._plugged.write_text(json.dumps([*taken, device.slot]))

    def unplug(self, slot: int, timeout: float, *, force: bool) -> None:
        if self.engine.failure is not None and not force:
            raise self.engine.failure
        self._plugged.write_text(json.dumps([*(self.plugged() - {slot})]))

    def plugged(self) -> frozenset[int]:
        return frozenset(json.loads(self._plugged.read_text()))

    def set_memory(self, size: int) -> None:
        self._ask(f"set_memory {size}")

    def cpus(self) -> int:
        return self.engine.cpus.get(self.record.name, self.engine.plan_of(self.record.name).cpus)

    def add_cpus(self, count: int) -> None:
        self._ask(f"add_cpus {count}")
        self.engine.cpus[self.record.name] = count

    @property
    def _memory(self) -> Path:
        return self.record.runtime / "memory"

    def resize_memory(self, size: int) -> int:
        self._ask(f"resize_memory {size}")
        if self.engine.guest_has is None:
            self._memory.write_text(str(size))
            return size
        return self.engine.guest_has

    def memory(self) -> int:
        return int(self._memory.read_text()) if self._memory.exists() else self.record.memory

    def set_resources(self, resources: Resources) -> None:
        Cell(self.record.control_group).give(resources)

    def stats(self, *, runs: bool) -> GuestMemoryUse | None:
        return self.engine.uses.get(self.record.name)

    def activity(self) -> Activity:
        return Activity(disk_read=1024, disk_reads=2, disk_written=0, disk_writes=0)

    def agent(self) -> GuestAgent:
        return GuestAgent(self.record.agents)

    def console(self) -> socket.socket:
        raise EngineError("it has no console")

    def vsock(self) -> None:
        return None

    def kill(self) -> None:
        self.process.send(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> bool:
        return self.process.wait(timeout)

    def _ask(self, what: str) -> None:
        if self.engine.silent:
            raise EngineError("it does not answer")
        self.engine.asked.append(what)


def _program(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]


class FakeEngine:
    """An engine whose machines are sleeping processes, and which fails where it is told to."""

    name = "fake"

    def __init__(self) -> None:
        self.plans: list[LaunchPlan] = []
        self.asked: list[str] = []
        self.cpus: dict[str, int] = {}
        self.silent = False
        self.refusal: CerneError | None = None
        self.failure: BaseException | None = None
        self.how_it_ended = Ending(orderly=False, reason="its process was killed")
        self.forks = True
        self.cards: int | None = None
        self.version = "fake"
        self.saved_size = 4096
        self.needs_beside = 0
        self.guest_has: int | None = None
        self.uses: dict[str, GuestMemoryUse] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            fork=self.forks, force_unplug=True, firmware=True, vsock=False, network_rate=False
        )

    def require(self, plan: LaunchPlan) -> None:
        if self.refusal is not None:
            raise self.refusal

    def start(self, plan: LaunchPlan) -> FakeInstance:
        self.plans.append(plan)
        (plan.runtime / "plugged").write_text(json.dumps([*plan.slots]))
        members = Members(plan.runtime)
        sleeper = start_member(members, MACHINE, ["/bin/sleep", "1000"], [])
        self._processes.append(sleeper)
        # It has registered itself and entered its cell when the shell is the program.
        while _program(sleeper.pid) != b"/bin/sleep":
            assert sleeper.poll() is None
        if self.failure is not None:
            raise self.failure
        identity = ProcessIdentity.of(sleeper.pid)
        assert identity is not None
        return self.attach(self.describe(plan, identity))

    def plan_of(self, name: str) -> LaunchPlan:
        """The plan by which a machine was started last."""
        return next(plan for plan in reversed(self.plans) if plan.name == name)

    def attach(self, record: InstanceRecord) -> FakeInstance:
        return FakeInstance(self, record)

    def describe(self, plan: LaunchPlan, process: ProcessIdentity) -> InstanceRecord:
        return InstanceRecord.of(plan, process, self.name, self.version)

    @property
    def overhead(self) -> int:
        return self.needs_beside

    @property
    def share_type(self) -> ShareType:
        return ShareType("fakefs")

    def fingerprint(self) -> str:
        return self.version

    def restores(self, fingerprint: str) -> bool:
        return fingerprint == self.version

    def saved_cards(self, directory: Path) -> int | None:
        assert (directory / "state").exists()
        return self.cards

    def ending(self, logs: Path) -> Ending:
        return self.how_it_ended

    def running(self) -> int:
        """How many of its processes run."""
        return sum(process.poll() is None for process in self._processes)

    def close(self) -> None:
        """Kill whatever a test left."""
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.close()


@pytest.fixture
def asked(engine: FakeEngine) -> list[str]:
    """What machines' processes were asked to do, all of which succeeds."""
    return engine.asked


@pytest.fixture
def manager(
    home: Path, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalHost]:
    """A manager over the fake engine, with one image: an empty disk named ``blank``.

    For tests that look at what is behind it: the store, the files of its home, locks, processes.
    It sweeps each time, as the manager of each command does.
    """
    monkeypatch.setattr("cerne.manager.manager._SWEEP_INTERVAL", 0.0)
    made = LocalHost(Home.of_this_user(), lambda _requested: engine)
    raw = tmp_path / "blank.raw"
    raw.write_bytes(bytes(1 << 20))
    made.images.import_(str(raw), "blank")
    yield made
    for runtime in made.home.machines_runtime.iterdir():
        Members(runtime).end()
        Cell(runtime / NOTE).end()


@pytest.fixture
def host(manager: LocalHost) -> Host:
    """The same by the interface of the client, for tests of what that promises."""
    return manager


@pytest.fixture
def machine(manager: Manager) -> Machine:
    """A machine named ``web``, of 64 MiB, that has not been started."""
    return manager.create(machine_spec(name="web", image="blank", memory="64M"))


@pytest.fixture(params=["tmpfs", "ext4"])
def small_home(
    root: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Home]:
    """A home on a small file system; ext4 keeps clusters back that it tells root are free."""
    place = Path(tempfile.mkdtemp(prefix="cerne-", dir="/tmp"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "cerne-test", str(place)]
    if request.param == "ext4":
        disk = tmp_path / "small.ext4"
        disk.touch()
        os.truncate(disk, 64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True)
        mount = ["mount", "-o", "loop", str(disk), str(place)]
    if subprocess.run(mount, check=False).returncode != 0:
        place.rmdir()
        pytest.skip(f"no {request.param} can be mounted here")
    monkeypatch.setenv("CERNE_HOME", str(place))
    yield Home.of_this_user()
    subprocess.run(["umount", "-l", place], check=True)
    place.rmdir()
