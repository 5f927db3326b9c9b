"""Two machines that are busy share a processor as they are weighed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guests.harness import Running, running

from cerne.errors import HostError
from cerne.host.cgroup import MachineGroup, require_weights

_LOOP = bytes.fromhex("ebfe")
_MEASURED = 3.0
"""Seconds of CPU time that both use together."""


@pytest.fixture
def weights() -> None:
    """Skips where this host does not let us weigh processes."""
    try:
        require_weights()
    except HostError as error:
        pytest.skip(error.message)


def _pin(machine: Running, processor: int) -> None:
    for task in Path(f"/proc/{machine.process.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {processor})


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
    groups = [MachineGroup(f"test-{each.name}-{os.getpid()}", each / "group") for each in homes]
    with running(homes[0], kernel) as light, running(homes[1], kernel) as heavy:
        try:
            for group, machine, weight in zip(groups, (light, heavy), (100, 300), strict=True):
                group.weigh(machine.process.pid, weight)
            used = _shared(light, heavy)
            # And the other way about, without starting them anew.
            groups[0].weigh(light.process.pid, 900)
            turned = _shared(light, heavy)
        finally:
            for machine in (light, heavy):
                machine.process.kill()
                machine.process.wait()
            for group in groups:
                group.remove()
    assert used[1] > 1.5 * used[0]
    assert turned[0] > 1.5 * turned[1]
