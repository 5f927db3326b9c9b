"""A guest of ours with a driver for the memory device: it has what it plugs, and no more."""

from __future__ import annotations

from pathlib import Path

from tests.guests.conftest import Built
from tests.guests.harness import running
from tests.waiting import PATIENCE

from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.memory import BLOCK_SIZE, MachineMemory, memory_of
from cerne.units import MIB


def test_memory_is_plugged_and_given_back(home: Path, built: Built, emulated: bool) -> None:
    room = 4 * BLOCK_SIZE
    with running(home, built("memory"), headroom=room, emulated=emulated) as machine:
        with machine.connected() as console, QmpClient(machine.qmp) as qmp:

            def request(size: int) -> None:
                where = {"path": "/machine/peripheral/memory", "property": "requested-size"}
                qmp.execute("qom-set", {**where, "value": size})

            def after(step: bytes) -> MachineMemory | None:
                """The machine's memory once the guest has done that; then it goes on."""
                machine.wait_for(step + b"\n")
                found = memory_of(qmp)
                console.sendall(b"x")
                return found

            assert after(b"started") == MachineMemory(16 * MIB, 0, 0, room)
            request(BLOCK_SIZE)
            assert after(b"plugged") == MachineMemory(16 * MIB, BLOCK_SIZE, BLOCK_SIZE, room)
            change = qmp.wait_event("MEMORY_DEVICE_SIZE_CHANGE", timeout=PATIENCE)
            assert change.data["size"] == BLOCK_SIZE
            request(0)
            assert after(b"unplugged") == MachineMemory(16 * MIB, 0, 0, room)
            request(BLOCK_SIZE)
        assert machine.end() == (True, "the guest shut down")
    lines = machine.console().decode().splitlines()
    assert [line for line in lines if line.startswith("WRONG")] == []
    assert lines[-1] == "done"
