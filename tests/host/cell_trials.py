"""Trials of cells with real processes, on this host or on another without pytest.

Each trial makes a cell, starts processes in it, looks at them, and ends it. It fails with an
AssertionError. `python3 cell_trials.py DIRECTORY` runs all of them and prints what was seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from cerne.errors import HostError
from cerne.host.cell import Cell, CellPlan, made, require_limits
from cerne.host.cell_note import NOTE, CellNote
from cerne.host.members import MACHINE, Members, start_member
from cerne.spec.resources import CpuResources, MemoryResources, Resources
from cerne.units import MIB
from cerne.vmm.registration import enter

_PATIENCE = 120.0
_NO_LIMIT = "9223372036854771712"
"""No limit of memory, in version 1."""
_LONG = ["/bin/sleep", "1000"]
_BOMB = """
import os, time
children = 0
try:
    while children < 1000:
        if os.fork() == 0:
            time.sleep(1000)
        children += 1
except OSError as error:
    print(children, error.errno, flush=True)
time.sleep(1000)
"""
_HOG = """
import mmap
held = []
print("begins", flush=True)
while len(held) < 4096:
    piece = mmap.mmap(-1, 1 << 20)
    for page in range(0, 1 << 20, 4096):
        piece[page] = 1
    held.append(piece)
print("has", len(held), flush=True)
"""


class Trial:
    """One machine with a cell."""

    def __init__(self, directory: Path, name: str) -> None:
        self.runtime = directory / name
        self.runtime.mkdir()
        self.name = name
        self.members = Members(self.runtime)
        self.started: list[subprocess.Popen[bytes]] = []

    @property
    def note(self) -> Path:
        return self.runtime / NOTE

    @property
    def groups(self) -> tuple[Path, ...]:
        found = CellNote.read(self.note)
        assert found is not None
        return found.groups

    @property
    def output(self) -> str:
        return (self.runtime / "output").read_text()

    @contextlib.contextmanager
    def cell(self, resources: Resources) -> Iterator[Cell]:
        """A cell, in which `start` starts processes, and which is ended with all in it."""
        plan = CellPlan(f"trial-{self.name}", self.note, resources)
        groups: tuple[Path, ...] = ()
        try:
            with made(plan):
                groups = self.groups
                self.start(_LONG)
            yield Cell(self.note)
        finally:
            self.members.end()
            Cell(self.note).end()
            for process in self.started:
                process.wait()
        eventually(lambda: not any(group.exists() for group in groups))
        assert not self.note.exists()

    def start(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self.runtime / "output").open("wb") as output:
            process = start_member(self.members, MACHINE, argv, [], output.fileno())
        self.started.append(process)
        eventually(lambda: bool(argv[0].encode() in _command_of(process)))
        return process

    def has(self, name: str) -> bool:
        """Whether its groups have this file."""
        return any((group / name).exists() for group in self.groups)

    def read(self, *names: str) -> str:
        """The text of a file of its groups, which has one of these names."""
        for group in self.groups:
            for name in names:
                if (group / name).exists():
                    return (group / name).read_text().strip()
        raise AssertionError(f"there is no {names} in {self.groups}")


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def _command_of(process: subprocess.Popen[bytes]) -> bytes:
    assert process.poll() is None, process.returncode
    return Path(f"/proc/{process.pid}/cmdline").read_bytes().partition(b"\0")[0]


def _is_inside(trial: Trial, pid: int) -> bool:
    return all(str(pid) in (group / "cgroup.procs").read_text().split() for group in trial.groups)


def processes_start_in_it_and_end_with_it(trial: Trial) -> str:
    with trial.cell(Resources()) as cell:
        (first,) = trial.started
        second = trial.start(_LONG)
        # What it starts itself is in the cell too, and need not register to be ended.
        other = trial.start([sys.executable, "-c", _BOMB.replace("1000:", "3:")])
        assert all(_is_inside(trial, process.pid) for process in (first, second, other))
        eventually(lambda: (used.processes or 0) >= 6 if (used := cell.usage()) else False)
        used = cell.usage()
        assert used is not None
        inside = {pid for group in trial.groups for pid in (group / "cgroup.procs").open()}
        assert str(os.getpid()) not in {pid.strip() for pid in inside}
        words = cell.words
    for pid in inside:
        assert not Path(f"/proc/{pid.strip()}/exe").exists()
    return f"{words}: {len(inside)} processes, {used}"


def a_fork_enters_by_descriptors(trial: Trial) -> str:
    """As a child of the VMM does."""
    with trial.cell(Resources()):
        note = CellNote.read(trial.note)
        assert note is not None
        if note.attach:
            return "this user's processes are moved by systemd"
        doors = [os.open(door, os.O_WRONLY) for door in note.doors]
        pid = os.fork()
        if pid == 0:
            enter(doors)
            time.sleep(1000)
        eventually(lambda: _is_inside(trial, pid))
        for door in doors:
            os.close(door)
    assert os.waitpid(pid, 0)[1] == 9
    return f"by {len(doors)} descriptors"


def processes_in_groups_inside_end_too(trial: Trial) -> str:
    with trial.cell(Resources()):
        note = CellNote.read(trial.note)
        assert note is not None
        if note.attach:
            return "this user's processes are moved by systemd"
        hidden = trial.start(_LONG)
        for group in trial.groups:
            inside = group / "inside" / "further"
            inside.mkdir(parents=True)
            (inside / "cgroup.procs").write_text(str(hidden.pid))
        # No registration leads to it.
        for file in trial.members.all():
            if file.process is not None and file.process.pid == hidden.pid:
                file.file.unlink()
    assert hidden.wait() == -9
    return f"in {len(note.groups)} groups"


def a_fork_bomb_is_stopped(trial: Trial) -> str:
    with trial.cell(Resources(pids=64)) as cell:
        trial.start([sys.executable, "-c", _BOMB])
        eventually(lambda: trial.output.endswith("\n"))
        children, number = map(int, trial.output.split())
        assert children < 64
        assert os.strerror(number) == "Resource temporarily unavailable"
        used = cell.usage()
        assert used is not None
        assert used.processes == 64
    return f"after {children} forks"


def a_memory_hog_is_stopped(trial: Trial) -> str:
    memory = MemoryResources(limit=64 * MIB, swap=False)
    with trial.cell(Resources(memory=memory)) as cell:
        hog = trial.start([sys.executable, "-c", _HOG])
        assert hog.wait() == -9
        assert trial.output == "begins\n"
        # The others of the machine run on.
        assert trial.started[0].poll() is None
        used = cell.usage()
        assert used is not None
        assert used.memory is not None
        assert used.memory <= 64 * MIB
        if trial.has("memory.events"):
            words = trial.read("memory.events").split()
            # It was slowed down before.
            assert int(words[words.index("high") + 1]) > 0
    return "killed by the kernel"


def a_quota_of_cpu_time_holds(trial: Trial) -> str:
    """By the kernel's counters alone: it was held back, and had no more than its quota.

    The quota is so small that a busy host does not hold it back before.
    """
    with trial.cell(Resources(cpu=CpuResources(limit=Decimal("0.05")))) as cell:
        trial.start([sys.executable, "-c", "while True: pass"])

        def throttled() -> dict[str, int]:
            words = trial.read("cpu.stat").split()
            return {name: int(value) for name, value in zip(words[::2], words[1::2], strict=True)}

        eventually(lambda: throttled()["nr_throttled"] >= 10)
        counted = throttled()
        used = cell.usage()
        assert used is not None
        assert used.cpu_seconds is not None
        periods = counted["nr_periods"]
        # It may have more in one period, by a tick of the clock, which a later one lacks.
        assert used.cpu_seconds <= 2 * periods * 0.1 * 0.05 + 0.1, (used, counted)
    return f"{used.cpu_seconds:.2f} s of CPU time in {periods} periods of 0.1 s"


def limits_change_while_it_runs(trial: Trial) -> str:
    with trial.cell(Resources(cpu=CpuResources(weight=300))) as cell:
        assert trial.read("cpu.weight", "cpu.shares") in ("300", "3072")
        assert trial.read("pids.max") == "1024"
        other = Resources(
            cpu=CpuResources(weight=50, limit=Decimal("1.5")),
            memory=MemoryResources(limit=256 * MIB),
            pids=100,
        )
        cell.give(other)
        assert trial.read("cpu.weight", "cpu.shares") in ("50", "512")
        assert trial.read("cpu.max", "cpu.cfs_quota_us") in ("150000 100000", "150000")
        assert trial.read("memory.max", "memory.limit_in_bytes") == str(256 * MIB)
        assert trial.read("pids.max") == "100"
        cell.give(Resources())
        assert trial.read("cpu.weight", "cpu.shares") in ("100", "1024")
        assert trial.read("cpu.max", "cpu.cfs_quota_us") in ("max 100000", "-1")
        assert trial.read("memory.max", "memory.limit_in_bytes") in ("max", _NO_LIMIT)
        assert trial.read("pids.max") == "1024"
    return "all were given and taken back"


def memory_is_promised_and_not_swapped(trial: Trial) -> str:
    memory = MemoryResources(guarantee=64 * MIB, limit=256 * MIB, swap=False)
    with trial.cell(Resources(memory=memory)) as cell:
        assert trial.read("memory.min", "memory.soft_limit_in_bytes") == str(64 * MIB)
        assert trial.read("memory.swap.max", "memory.swappiness") == "0"
        if trial.has("memory.high"):
            assert trial.read("memory.high") == str(248 * MIB)
        cell.give(Resources())
        assert trial.read("memory.min", "memory.soft_limit_in_bytes") in ("0", _NO_LIMIT)
        assert trial.read("memory.swap.max", "memory.swappiness") in ("max", "60")
        if trial.has("memory.high"):
            assert trial.read("memory.high") == "max"
    return "it was given and taken back"


def a_machine_is_pinned_and_released(trial: Trial) -> str:
    """By the cpuset, or thread by thread; what it starts then is where it is."""
    allowed = os.sched_getaffinity(0)
    first = min(allowed)
    with trial.cell(Resources(cpu=CpuResources(pin=str(first)))) as cell:
        cell.give(Resources(cpu=CpuResources(pin=str(first))))
        (process,) = trial.started
        assert os.sched_getaffinity(process.pid) == {first}
        cell.give(Resources())
        assert os.sched_getaffinity(process.pid) == allowed
        last = max(allowed)
        cell.give(Resources(cpu=CpuResources(pin=str(last))))
        assert os.sched_getaffinity(process.pid) == {last}
    return f"to {first}, to {sorted(allowed)}, to {last}"


def a_command_that_is_killed_leaves_nothing(trial: Trial) -> str:
    """At each step of making a cell."""
    from cerne import faults

    plan = CellPlan(f"trial-{trial.name}", trial.note, Resources())
    for step in range(4):
        pid = os.fork()
        if pid == 0:
            left = [step]

            def die(_name: str, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    os._exit(9)

            faults.hook = die
            with made(plan):
                os._exit(8)
        os.waitpid(pid, 0)
        note = CellNote.read(trial.note)
        assert note is not None
        Cell(trial.note).end()
        eventually(lambda groups=note.groups: not any(each.exists() for each in groups))  # type: ignore[misc]
    assert not left_over(trial.name)
    return "after each of 4 steps"


def left_over(name: str) -> list[Path]:
    """The groups of a trial that are still there."""
    return [*Path("/sys/fs/cgroup").glob(f"**/cerne-trial-{name}*")]


TRIALS = (
    processes_start_in_it_and_end_with_it,
    a_fork_enters_by_descriptors,
    processes_in_groups_inside_end_too,
    a_fork_bomb_is_stopped,
    a_memory_hog_is_stopped,
    a_quota_of_cpu_time_holds,
    limits_change_while_it_runs,
    memory_is_promised_and_not_swapped,
    a_machine_is_pinned_and_released,
    a_command_that_is_killed_leaves_nothing,
)


def why_not() -> str:
    """Why this host does not have cells with limits; empty if it has."""
    try:
        require_limits(Resources(cpu=CpuResources(limit=Decimal(1)), pids=100))
    except HostError as error:
        return str(error)
    return ""


def main() -> int:
    """Run all trials, and print what each saw; the status is the number of those that failed."""
    failed = 0
    if why := why_not():
        print(json.dumps({"refused": why}), flush=True)
        return 1
    for trial in TRIALS:
        name = trial.__name__
        try:
            print(f"{name}: {trial(Trial(Path(sys.argv[1]), name.replace('_', '-')))}", flush=True)
        except Exception as error:  # noqa: BLE001 (it is told of, and the others are tried)
            failed += 1
            print(f"{name} FAILED: {error!r}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
