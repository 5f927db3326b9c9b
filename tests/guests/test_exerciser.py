"""A driver that keeps to no rule, on every virtio device of a real machine (exerciser.c)."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from tests.guests.conftest import Built
from tests.guests.harness import Running, running

from cerne.engine.qmp import QmpClient
from cerne.units import MIB

_CASES = (
    *("reset at each step", "what is not offered is refused", "queue before features"),
    *("used ring outside memory", "a queue is reset, and works again", "loops", "nested"),
    *("wraps", "index_jumps", "rings on each other", "registers of every width"),
    *("memory over everything else", "decoding off and on", "masks while messages fly"),
    *("a reset in mid-flight", "a queue that is refilled all the time", "memory moved by two"),
)
_KINDS = (1, 2, 3, 4, 5, 19)
"""Device types (virtio 1.2, section 5) that every run has to have met."""

_BALLOON = 5
"""Which takes pages away by what happens to be in a buffer."""


def _rests(machine: Running) -> bool:
    """Whether it uses next to no processor time."""
    before = machine.cpu_time()
    time.sleep(1)
    return machine.cpu_time() - before < 0.5


def test_a_driver_that_keeps_to_no_rule_harms_nobody(
    home: Path, built: Built, emulated: bool, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512) + b"a sector" * 64 + bytes(62 << 10))
    with running(
        home, built("exerciser"), cpus=2, disks=[disk], nics=1, vsock=True, emulated=emulated
    ) as machine:
        machine.wait_for(b"idle\n")
        said = machine.console().decode(errors="replace").splitlines()
        assert [line for line in said if line.startswith("WRONG")] == []
        met = set(said)
        wanted = {f"ok {kind:x} {case}" for kind in _KINDS for case in _CASES} - {
            f"ok {_BALLOON:x} rings on each other"
        }
        assert wanted - met == set()
        assert _rests(machine)
        # Every ring now says nonsense, and something comes from outside.
        for _ in range(5):
            machine.links[0].send(b"\0\0\0\3one" * 20)
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(str(machine.home / "agent0"))
            agent.send(b"is anybody there?")
            assert _rests(machine)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(machine.home / "vsock" / "guest.sock"))
            caller.send(b"CONNECT 1\n")
            assert _rests(machine)
        assert machine.resident() < 80 * MIB
        with QmpClient(machine.qmp) as client:
            assert client.status() == "running"
            client.quit()
        assert machine.end() == (True, "it was told to quit")
        assert "Traceback" not in machine.errors()
    assert disk.read_bytes()[512:1024] == b"a sector" * 64
