"""Cells: v1 with real processes as it is here, v2 and systemd by the files of another host.

`tests/e2e/test_cells.py` runs the same trials on hosts with v2 and with systemd.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from tests.host.cell_trials import TRIALS, Trial, why_not

from cerne.errors import CapacityError, DamagedError, HostError
from cerne.host import cgroup
from cerne.host.cell import Cell, CellPlan, cell_finding, made, require_limits
from cerne.host.cell_note import CellNote
from cerne.host.cgroup import Surface
from cerne.host.limits import Limits, limits_of
from cerne.host.placement import Placement
from cerne.spec.resources import CpuResources, DiskResources, MemoryResources, Resources
from cerne.units import MIB

_LIMITED = Resources(
    cpu=CpuResources(weight=300, limit=Decimal("1.5")),
    memory=MemoryResources(guarantee=64 * MIB, limit=256 * MIB, swap=False),
    pids=200,
)
_V2 = {
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpuset.cpus": "\n",
    "cpuset.mems": "\n",
    "memory.min": "0",
    "memory.high": "max",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.stat": "anon 1048576\nfile 0\nshmem 1048576\n",
    "memory.current": "3145728",
    "pids.max": "max",
    "pids.current": "3",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1\n",
    "cpu.pressure": "some avg10=1.25 avg60=0.00 avg300=0.00 total=5\n",
    "cgroup.procs": "",
    "cgroup.controllers": "",
    "cgroup.subtree_control": "",
}


class FakeHost:
    """Files as the kernel of another host shows them; groups that are made have theirs at once."""

    def __init__(self, directory: Path) -> None:
        self.surface = Surface(directory / "cgroup", directory / "proc", directory / "systemd")
        self.groups = self.surface.groups

    def group(self, path: str, **files: str) -> Path:
        """A group that is there, with this in its files (``_`` for a dot)."""
        group = self.groups / path
        group.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (group / name.replace("_", ".", 1)).write_text(text)
        return group

    def process(self, groups: str) -> None:
        """This process in these groups, as /proc shows them."""
        place = self.surface.processes / str(os.getpid())
        place.mkdir(parents=True)
        (place / "cgroup").write_text(groups)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    fake = FakeHost(tmp_path)
    make, remove = Path.mkdir, Path.rmdir

    def mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        make(path, mode, parents, exist_ok)
        if path.is_relative_to(fake.groups):
            for name, text in _V2.items():
                if not (path / name).exists():
                    (path / name).write_text(text)

    def rmdir(path: Path) -> None:
        if path.is_relative_to(fake.groups):
            for name in path.iterdir():
                name.unlink()
        remove(path)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    return fake


@pytest.fixture
def unified(host: FakeHost) -> FakeHost:
    """A v2 hierarchy with a session's group in it, in which this process is."""
    all_ = "cpu memory pids"
    host.group("", cgroup_controllers=all_, cgroup_subtree_control=all_)
    inner = {"cgroup_controllers": all_, "cgroup_type": "domain"}
    host.group("user.slice", **inner, cgroup_subtree_control="cpu")
    host.group("user.slice/session", **inner, cgroup_procs="77")
    host.process("0::/user.slice/session\n")
    return host


@pytest.fixture
def plan(tmp_path: Path) -> Callable[[Resources], CellPlan]:
    def make(resources: Resources) -> CellPlan:
        return CellPlan("1234", tmp_path / "group", resources)

    return make


@pytest.mark.parametrize("trial", TRIALS)
def test_a_cell_of_this_host(trial: Callable[[Trial], str], tmp_path: Path) -> None:
    if why := why_not():
        pytest.skip(why)
    name = f"{trial.__name__.replace('_', '-')}-{os.getpid()}"
    assert trial(Trial(tmp_path, name))


def test_v2_has_a_group_beside_this_processs_own(
    unified: FakeHost, plan: Callable[[Resources], CellPlan]
) -> None:
    require_limits(_LIMITED, unified.surface)
    asked = plan(_LIMITED)
    with made(asked, unified.surface):
        group = unified.groups / "user.slice/cerne-1234"
        values = {name: (group / name).read_text() for name in _V2}
        assert values["cpu.weight"] == "300"
        assert values["cpu.max"].startswith("150000 100000")
        assert values["memory.min"] == str(64 * MIB)
        # It is slowed down before it is ended.
        assert values["memory.high"] == str(248 * MIB)
        assert values["memory.max"] == str(256 * MIB)
        assert values["memory.swap.max"].startswith("0")
        assert values["pids.max"] == "200"
        assert values["cpuset.cpus"].strip() == values["cpuset.mems"].strip() == ""
        note = CellNote.read(asked.note)
        assert note == CellNote("cgroup v2", (group,))
        assert note.doors == (group / "cgroup.procs",)
    cell = Cell(asked.note, unified.surface)
    used = cell.usage()
    assert used == cgroup.Usage(1.5, 3 * MIB, 3, {"cpu": 1.25})
    cell.end()
    assert not group.exists()
    assert not asked.note.exists()
    cell.end()


def test_v2_pins_a_machine_and_releases_it(
    unified: FakeHost, plan: Callable[[Resources], CellPlan]
) -> None:
    first = str(min(os.sched_getaffinity(0)))
    pinned = Resources(cpu=CpuResources(pin=first, numa_node=0))
    with pytest.raises(HostError, match="cpuset"):
        require_limits(pinned, unified.surface)
    for path in ("", "user.slice"):
        unified.group(path, cgroup_controllers="cpu memory pids cpuset")
    require_limits(pinned, unified.surface)
    with made(plan(pinned), unified.surface):
        group = unified.groups / "user.slice/cerne-1234"
        assert (group / "cpuset.cpus").read_text().strip() == first
        assert (group / "cpuset.mems").read_text().strip() == "0"
    # The kernel does not empty a cpuset that has processes: it gets what the group around has.
    around = unified.groups / "user.slice"
    (around / "cpuset.cpus.effective").write_text("0-7\n")
    (around / "cpuset.mems.effective").write_text("0-1\n")
    cell = Cell(plan(pinned).note, unified.surface)
    cell.give(Resources())
    assert (group / "cpuset.cpus").read_text().strip() == "0-7"
    assert (group / "cpuset.mems").read_text().strip() == "0-1"
    with pytest.raises(CapacityError, match="no CPU 8000"):
        cell.give(Resources(cpu=CpuResources(pin="8000")))


def test_v1_has_all_cpus_where_none_are_asked_for() -> None:
    written = {each.file: each for each in Limits().legacy("0-7", "0-1")}
    assert (written["cpuset.cpus"].text, written["cpuset.mems"].text) == ("0-7", "0-1")
    assert not written["cpuset.mems"].needed
    limits = Limits(placement=Placement("2-3", "1"))
    written = {each.file: each for each in limits.legacy("0-7", "0-1")}
    assert (written["cpuset.cpus"].text, written["cpuset.mems"].text) == ("2-3", "1")
    assert written["cpuset.mems"].needed


def test_v2_turns_controllers_on_where_they_are_off(
    unified: FakeHost, plan: Callable[[Resources], CellPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = cgroup._write

    def noted(file: Path, text: str) -> None:
        written.append((file.name, text))
        write(file, text)

    monkeypatch.setattr(cgroup, "_write", noted)
    with made(plan(Resources()), unified.surface):
        pass
    assert ("cgroup.subtree_control", "+memory") in written
    assert ("cgroup.subtree_control", "+pids") in written
    assert ("cgroup.subtree_control", "+cpu") not in written


def test_v2_divides_no_group_that_has_processes(
    unified: FakeHost, plan: Callable[[Resources], CellPlan]
) -> None:
    (unified.groups / "user.slice/cgroup.procs").write_text("5\n6")
    with made(plan(Resources()), unified.surface):
        assert (unified.groups / "cerne-1234").is_dir()


def test_a_user_without_groups_has_machines_without_limits_alone(
    unified: FakeHost, plan: Callable[[Resources], CellPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.host.cgroup.os.access", lambda *_: False)
    with pytest.raises(HostError, match="does not limit machines") as caught:
        require_limits(_LIMITED, unified.surface)
    assert "delegated" in caught.value.hint
    with pytest.raises(HostError), made(plan(_LIMITED), unified.surface):
        pass
    assert not plan(_LIMITED).note.exists()
    require_limits(Resources(), unified.surface)
    with made(plan(Resources()), unified.surface):
        cell = Cell(plan(_LIMITED).note, unified.surface)
        assert cell.words.startswith("none: this user owns no control group")
        assert cell.usage() is None
    cell.give(Resources())
    with pytest.raises(HostError, match="without control groups") as caught:
        cell.give(_LIMITED)
    assert "restart" in caught.value.hint
    finding = cell_finding(unified.surface)
    assert not finding.good
    assert "delegated" in finding.advice


def test_what_the_kernel_refuses_leaves_nothing(
    unified: FakeHost, plan: Callable[[Resources], CellPlan], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cgroup._write

    def refuse(file: Path, text: str) -> None:
        if file.name == "pids.max" and text == "200":
            raise OSError(22, "Invalid argument", str(file))
        write(file, text)

    monkeypatch.setattr(cgroup, "_write", refuse)
    with (
        pytest.raises(HostError, match=r"pids\.max: Invalid"),
        made(plan(_LIMITED), unified.surface),
    ):
        pass
    assert not plan(_LIMITED).note.exists()
    assert not (unified.groups / "user.slice/cerne-1234").exists()
    # And a change is made as a whole, or not at all.
    with made(plan(Resources()), unified.surface):
        cell = Cell(plan(Resources()).note, unified.surface)
        with pytest.raises(HostError):
            cell.give(_LIMITED)
        group = unified.groups / "user.slice/cerne-1234"
        assert (group / "cpu.weight").read_text() == "100"
        assert (group / "memory.min").read_text().startswith("0")


def test_a_limit_below_what_is_used_is_refused(
    unified: FakeHost, plan: Callable[[Resources], CellPlan]
) -> None:
    with made(plan(Resources()), unified.surface):
        group = unified.groups / "user.slice/cerne-1234"
        (group / "memory.stat").write_text(f"anon {500 * MIB}\nshmem {MIB}\n")
        with pytest.raises(CapacityError, match="501M") as caught:
            Cell(plan(_LIMITED).note, unified.surface).give(_LIMITED)
    assert "--memory-limit 565M" in caught.value.hint
    assert (group / "memory.max").read_text() == "max"


def test_a_controller_that_is_missing_is_named(unified: FakeHost) -> None:
    disk = Resources(disk=DiskResources(weight=300))
    with pytest.raises(HostError, match="io"):
        require_limits(disk, unified.surface)


def test_a_host_without_groups_is_refused(host: FakeHost) -> None:
    host.groups.mkdir()
    for file in host.groups.iterdir():
        file.unlink()
    with pytest.raises(HostError) as caught:
        require_limits(_LIMITED, host.surface)
    assert "mount" in caught.value.hint


def test_notes_of_an_older_cerne_are_read(tmp_path: Path) -> None:
    note = tmp_path / "group"
    note.write_text("/sys/fs/cgroup/cpu/cerne-1")
    assert CellNote.read(note) == CellNote("cgroup", (Path("/sys/fs/cgroup/cpu/cerne-1"),))
    note.write_text("cerne-1.scope")
    assert CellNote.read(note) == CellNote("systemd", unit="cerne-1.scope")
    note.write_text("")
    assert CellNote.read(note) is None
    note.write_text('{"way": 1}')
    with pytest.raises(DamagedError):
        CellNote.read(note)


@pytest.mark.parametrize("note", [b'{"way":', b"{\xff", b"{" + b'"way":[' * 20_000, b'{"way": 1}'])
def test_a_cell_whose_note_is_damaged_is_ended(
    unified: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: bytes
) -> None:
    ended: list[Path] = []
    monkeypatch.setattr(cgroup, "end", ended.extend)
    directory = tmp_path / "1234"
    directory.mkdir()
    (directory / "group").write_bytes(note)
    Cell(directory / "group", unified.surface).end()
    assert ended == [unified.groups / "user.slice/cerne-1234"]
    assert not (directory / "group").exists()


def test_no_group_of_others_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Path] = []
    monkeypatch.setattr(cgroup, "end", ended.extend)
    ours, theirs = Path("/sys/fs/cgroup/pids/cerne-1"), Path("/sys/fs/cgroup/pids/theirs")
    CellNote("cgroup v1", (ours, theirs)).write(tmp_path / "group")
    Cell(tmp_path / "group").end()
    assert ended == [ours]


@pytest.mark.parametrize(
    ("file", "text", "killed"),
    [
        ("memory.events", "low 0\nmax 3\noom 1\noom_kill 1\n", True),
        ("memory.events", "low 0\nmax 3\noom 0\noom_kill 0\n", False),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", True),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", False),
        ("memory.oom_control", "unreadable", False),
    ],
)
def test_who_reached_the_memory_limit_is_known(
    tmp_path: Path, file: str, text: str, killed: bool
) -> None:
    (tmp_path / file).write_text(text)
    assert cgroup.killed_for_memory([tmp_path]) is killed


def test_a_guaranteed_cpu_weighs_more() -> None:
    def weight(**values: object) -> int:
        return limits_of(Resources(cpu=CpuResources.model_validate(values))).cpu_weight

    assert weight() == 100
    assert weight(weight=50) == 50
    assert weight(guarantee="1.5") == 1500
    assert weight(guarantee="0.01") == 100
    assert weight(guarantee="64") == 10_000


def test_the_kernel_throttles_no_disk() -> None:
    # A process whose write waits for the kernel's throttle does not end when it is killed.
    rates = DiskResources(rate=1024, iops=1)
    assert limits_of(Resources(disk=rates)) == Limits()


def test_systemd_has_the_defaults_as_empty_values() -> None:
    properties = Limits().properties()
    assert "CPUWeight=" in properties
    assert "MemoryMax=infinity" in properties
    assert "TasksMax=1024" in properties
    given = Limits(cpu_quota=150_000, memory_most=MIB).properties()
    assert "CPUQuota=150.0%" in given
    assert "AllowedCPUs=" in properties
    assert "AllowedMemoryNodes=" in properties
    placed = Limits(placement=Placement("0-1", "0")).properties()
    assert {"AllowedCPUs=0-1", "AllowedMemoryNodes=0"} <= set(placed)
    assert f"MemoryMax={MIB}" in given
