"""CPUs that come while a guest runs: small guests of our own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.guests.harness import running
from tests.waiting import PATIENCE

from cerne.engine.qmp import QmpClient
from cerne.errors import EngineError

# The first enables its local APIC, waits until port 0x620 says that there are two, and starts the
# second (INIT, SIPI) at 0x8000, where that writes 0x34 to port 0x600 in real mode: power off.
_STARTS_THE_SECOND = bytes.fromhex(
    "48b8 ba0006b034eef400 4889042500800000"
    "bb0000e0fe c783f0000000ff010000"
    "66ba2006 ed 83f802 75fa"
    "c7831003000000000001"
    "c7830003000000450000 c7830003000008460000 ebfe"
)
_LOOP = bytes.fromhex("ebfe")

SmallKernel = Callable[[Path, bytes], Path]


def _count(client: QmpClient) -> int:
    present = client.execute("query-cpus-fast")
    assert isinstance(present, list)
    return len(present)


def test_a_cpu_that_comes_runs(home: Path, small_kernel: SmallKernel, kvm_device: Path) -> None:
    kernel = small_kernel(home / "kernel", _STARTS_THE_SECOND)
    with running(home, kernel, max_cpus=2) as machine, QmpClient(machine.qmp) as client:
        assert _count(client) == 1
        client.execute("cerne-add-cpus", {"count": 2})
        event = client.wait_event("SHUTDOWN", timeout=PATIENCE)
        assert event.data == {"guest": True, "reason": "guest-shutdown"}


def test_they_stay_after_a_pause_and_a_reset(
    home: Path, small_kernel: SmallKernel, kvm_device: Path
) -> None:
    kernel = small_kernel(home / "kernel", _LOOP)
    with running(home, kernel, max_cpus=3) as machine, QmpClient(machine.qmp) as client:
        client.execute("stop")
        client.execute("cerne-add-cpus", {"count": 2})
        client.execute("cont")
        client.execute("cerne-add-cpus", {"count": 2})
        client.execute("cerne-add-cpus", {"count": 1})
        assert _count(client) == 2
        client.execute("system_reset")
        client.wait_event("RESET", timeout=PATIENCE)
        assert _count(client) == 2
        client.execute("cerne-add-cpus", {"count": 3})
        assert _count(client) == 3
        for count in (4, 0, 1 << 20):
            with pytest.raises(EngineError):
                client.execute("cerne-add-cpus", {"count": count})
        assert (client.status(), _count(client)) == ("running", 3)


def test_a_machine_without_room_takes_none(
    home: Path, small_kernel: SmallKernel, kvm_device: Path
) -> None:
    kernel = small_kernel(home / "kernel", _LOOP)
    with running(home, kernel) as machine, QmpClient(machine.qmp) as client:
        with pytest.raises(EngineError):
            client.execute("cerne-add-cpus", {"count": 2})
        assert _count(client) == 1
