"""Two machines that are busy share a processor as they are weighed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cells import skip_without_limits
from tests.guests.harness import Running, running

from cerne.host.cell import Cell, CellPlan, made
from cerne.host.cell_note import NOTE, CellNote
from cerne.spec.resources import CpuResources, Resources

_LOOP = bytes.fromhex("ebfe")
_MEASURED = 1.5
"""Seconds of CPU time that both use together."""


@pytest.fixture
def weights() -> None:
    """Skips where this host does not let us weigh processes."""
    skip_without_limits()


def _pin(machine: Running, processor: int) -> None:
    for task in Path(f"/proc/{machine.process.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {processor})


def _weighing(weight: int) -> Resources:
    return Resources(cpu=CpuResources(weight=weight))


def _weigh(directory: Path, machine: Running, weight: int) -> None:
    """Move a machine that runs already into a cell of this weight."""
    name = f"test-{directory.name}-{os.getpid()}"
    with made(CellPlan(name, directory / NOTE, _weighing(weight))):
        note = CellNote.read(directory / NOTE)
        assert note is not None
        for door in note.doors:
            door.write_text(str(machine.process.pid))


def _shared(first: Running, second: Running) -> tuple[float, float]:
    """The CPU time that each uses while they share one processor."""
    processor = min(os.sched_getaffinity(0))
    for machine in (first, second):
        _pin(machine, processor)
    before = [machine.cpu_time() for machine in (first, second)]
    used = [0.0, 0.0]
    while sum(used) < _MEASURED:
        time.sleep(0.05)
        now = [machine.cpu_time() for machine in (first, second)]
        used = [later - earlier for later, earlier in zip(now, before, strict=True)]
    return used[0], used[1]


def test_the_heavier_of_two_busy_machines_has_more(
    weights: None, kvm_device: Path, home: Path, small_kernel: Callable[[Path, bytes], Path]
) -> None:
    kernel = small_kernel(home / "kernel", _LOOP)
    homes = [home / "light", home / "heavy"]
    for directory in homes:
        directory.mkdir()
    with running(homes[0], kernel) as light, running(homes[1], kernel) as heavy:
        try:
            for directory, machine, weight in zip(homes, (light, heavy), (100, 300), strict=True):
                _weigh(directory, machine, weight)
            used = _shared(light, heavy)
            # And the other way about, without starting them anew.
            Cell(homes[0] / NOTE).give(_weighing(900))
            turned = _shared(light, heavy)
        finally:
            for machine in (light, heavy):
                machine.process.kill()
                machine.process.wait()
            for directory in homes:
                Cell(directory / NOTE).end()
    assert used[1] > 1.5 * used[0]
    assert turned[0] > 1.5 * turned[1]
