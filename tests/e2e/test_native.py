"""The native engine, end to end: a Linux on /dev/kvm with nothing of QEMU around.

One boot serves all of it: where the host emulates guests' kernel code that takes half a minute.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import Cerne


@pytest.mark.timeout(280)
def test_a_life(cerne: Cerne, kvm_device: Path, own_kernel: None) -> None:
    options = ("--engine", "native", "--memory", "128M", "--timeout", "200s")
    assert cerne.ok("run", "-d", "--name", "n", *options, "tiny", timeout=250) == "n\n"
    machine = cerne.machine("n")
    assert (machine["state"], machine["engine"]) == ("running", "native")
    assert cerne.ok("exec", "n", "uname", "-s") == "Linux\n"
    assert cerne("exec", "n", "--", "sh", "-c", "exit 5").returncode == 5
    counted = cerne.ok("exec", "-i", "n", "--", "wc", "-c", stdin=bytes(100_000))
    assert counted.strip() == "100000"
    cerne.ok("pause", "n")
    assert cerne.machine("n")["state"] == "paused"
    cerne.ok("resume", "n")
    assert cerne.ok("exec", "n", "echo", "awake") == "awake\n"
    (used,) = json.loads(cerne.ok("stats", "--json"))
    assert used["memory_bytes"] == 128 << 20
    status = Path(f"/proc/{cerne.machine('n')['pid']}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t0" not in status
    cerne.ok("stop", "--timeout", "60s", "n")
    assert cerne.machine("n")["reason"] == "shut down"


def test_what_it_does_not_have_is_refused(cerne: Cerne, kvm_device: Path, tmp_path: Path) -> None:
    native = ("run", "--rm", "--engine", "native")
    assert "--engine qemu" in cerne.refused(*native, "--publish", "8080:80", "tiny", "true")
    assert "--engine qemu" in cerne.refused(*native, "--mount", f"{tmp_path}:/x", "tiny", "true")
    assert cerne.leftovers() == []
