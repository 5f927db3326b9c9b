"""What the manager's tests share."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cerne.engine.base import DiskPlan, Ending, LaunchPlan, Nic, ShareType
from cerne.errors import CerneError, InputError
from cerne.host.members import MACHINE, Members, start_member
from cerne.host.process import ProcessIdentity
from cerne.manager import Home, Machine, Manager
from cerne.manager.store import Record, State
from cerne.spec.machine import machine_spec
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


class FakeEngine:
    """An engine whose machines are sleeping processes, and which fails where it is told to."""

    name = "fake"

    def __init__(self) -> None:
        self.plans: list[LaunchPlan] = []
        self.refusal: CerneError | None = None
        self.failure: BaseException | None = None
        self.how_it_ended = Ending(orderly=False, reason="its process was killed")
        self.forks = True
        self.version = "fake"
        self.saved_size = 4096
        self._processes: list[subprocess.Popen[bytes]] = []

    def require(self, plan: LaunchPlan) -> None:
        if self.refusal is not None:
            raise self.refusal

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        self.plans.append(plan)
        _plugged(plan).write_text(json.dumps([*plan.slots]))
        members = Members(plan.runtime)
        sleeper = start_member(members, MACHINE, ["/bin/sleep", "1000"], [])
        self._processes.append(sleeper)
        while not members.alive(MACHINE):
            assert sleeper.poll() is None
        if self.failure is not None:
            raise self.failure
        identity = ProcessIdentity.of(sleeper.pid)
        assert identity is not None
        return identity

    @property
    def share_type(self) -> ShareType:
        return ShareType("fakefs")

    def fingerprint(self) -> str:
        return self.version

    def restores(self, fingerprint: str) -> bool:
        return fingerprint == self.version

    def save(
        self, plan: LaunchPlan, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool
    ) -> None:
        (directory / "memory").write_bytes(bytes(self.saved_size))
        if self.failure is not None:
            raise self.failure
        (directory / "state").write_text(plan.machine_id)

    def fork(
        self, plan: LaunchPlan, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]
    ) -> list[ProcessIdentity]:
        if not self.forks:
            raise InputError("this engine cannot fork")
        return [self.start(child) for child in children]

    def vsock(self, plan: LaunchPlan) -> None:
        return None

    def plug(self, plan: LaunchPlan, device: DiskPlan | Nic) -> None:
        taken = self.plugged(plan)
        assert device.slot is not None
        assert device.slot not in taken
        if self.failure is not None:
            raise self.failure
        _plugged(plan).write_text(json.dumps([*taken, device.slot]))

    def unplug(self, plan: LaunchPlan, slot: int, timeout: float, *, force: bool) -> None:
        if self.failure is not None and not force:
            raise self.failure
        _plugged(plan).write_text(json.dumps([*(self.plugged(plan) - {slot})]))

    def plugged(self, plan: LaunchPlan) -> frozenset[int]:
        return frozenset(json.loads(_plugged(plan).read_text()))

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


def _plugged(plan: LaunchPlan) -> Path:
    """Where a machine's process keeps what is in its slots: it outlives this engine."""
    return plan.runtime / "plugged"


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    fake = FakeEngine()
    yield fake
    fake.close()


def _run_state(commands: list[str]) -> str:
    """What a process would say that was given these commands."""
    said = [command for command in commands if command in ("stop", "cont")]
    return "paused" if said and said[-1] == "stop" else "running"


@pytest.fixture
def qmp(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that machines' processes were given in QMP, which all succeed."""
    commands: list[str] = []
    monkeypatch.setattr(
        "cerne.manager.life.Life.qmp", lambda _life, command: commands.append(command)
    )
    monkeypatch.setattr(
        "cerne.manager.life.Life.run_state",
        lambda _life: _run_state(commands),
    )
    return commands


@pytest.fixture
def manager(home: Path, engine: FakeEngine, tmp_path: Path) -> Iterator[Manager]:
    """A manager over the fake engine, with one image: an empty disk named ``blank``."""
    made = Manager(Home.of_this_user(), lambda _requested: engine)
    raw = tmp_path / "blank.raw"
    raw.write_bytes(bytes(1 << 20))
    made.images.import_(str(raw), "blank")
    yield made
    for runtime in made.home.machines_runtime.iterdir():
        Members(runtime).end()


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
