"""A guest of ours with a driver for the balloon: its host has the memory back each time."""

from __future__ import annotations

from pathlib import Path

from tests.guests.conftest import Built
from tests.guests.harness import running
from tests.waiting import PATIENCE

from cerne.engine.qmp import QmpClient
from cerne.units import MIB

_GIVEN = 8 * MIB


def test_memory_goes_back_to_the_host(home: Path, built: Built, emulated: bool) -> None:
    with running(home, built("balloon"), emulated=emulated) as machine:
        with machine.connected() as console, QmpClient(machine.qmp) as qmp:

            def after(step: bytes) -> int:
                """The process's memory once the guest has done that; then it goes on."""
                machine.wait_for(step + b"\n")
                found = machine.resident()
                console.sendall(b"x")
                return found

            started, filled = after(b"started"), after(b"filled")
            inflated = after(b"inflated")
            change = qmp.wait_event("BALLOON_CHANGE", timeout=PATIENCE)
            assert change.data == {"actual": 16 * MIB - _GIVEN}
            deflated, reported = after(b"deflated"), after(b"reported")
        assert machine.end() == (True, "the guest shut down")
    lines = machine.console().decode().splitlines()
    assert [line for line in lines if line.startswith("WRONG")] == []
    assert lines[-1] == "done"
    tolerance = MIB
    assert filled > started + _GIVEN - tolerance
    assert inflated < filled - _GIVEN + tolerance
    assert deflated > inflated + _GIVEN - tolerance
    assert reported < deflated - _GIVEN + tolerance
