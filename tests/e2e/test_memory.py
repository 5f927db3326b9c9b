"""Memory that a guest gives back, and CPU weights, on machines that run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cells import skip_without_limits
from tests.e2e.conftest import Cerne, Engine, available, resident

from cerne.host.cell_note import CellNote
from cerne.units import MIB

Eventually = Callable[[Callable[[], bool]], None]


def _stats(cerne: Cerne, name: str) -> dict[str, int]:
    (found,) = json.loads(cerne.ok("stats", "--json", name))
    return {key: value for key, value in found.items() if isinstance(value, int)}


@pytest.mark.slow_if_emulated
def test_a_balloon_and_free_memory_give_back_what_they_hold(
    cerne: Cerne, engine: Engine, no_templates: None, eventually: Eventually, own_kernel: None
) -> None:
    # With 128 MiB, as the others have, what the file leaves was not seen to be reported.
    options = ("--engine", engine.name, "--memory", "256M")
    cerne.ok("run", "-d", "--name", "q", *options, "tiny")
    whole, before = available(cerne, "q"), resident(cerne, "q")
    # The guest tells of itself some seconds after it was first asked.
    eventually(lambda: "guest_used_bytes" in _stats(cerne, "q"))
    used = _stats(cerne, "q")["guest_used_bytes"]
    cerne.ok("exec", "q", "--", "dd", "if=/dev/zero", "of=/tmp/f", "bs=1M", "count=96")
    # A part of it is in memory that its boot has freed.
    assert resident(cerne, "q") > before + 48 * MIB
    assert _stats(cerne, "q")["guest_used_bytes"] > used + 80 * MIB
    cerne.ok("exec", "q", "rm", "/tmp/f")
    # Free page reporting, which takes its time.
    eventually(lambda: resident(cerne, "q") < before + 20 * MIB)
    assert cerne.ok("set", "q", "--balloon", "160M") == "q\n"
    eventually(lambda: _stats(cerne, "q")["guest_memory_bytes"] == 160 * MIB)
    assert available(cerne, "q") < whole - 80 * MIB
    assert _stats(cerne, "q")["guest_used_bytes"] < used + 20 * MIB
    cerne.ok("set", "q", "--balloon", "256M")
    eventually(lambda: _stats(cerne, "q")["guest_memory_bytes"] == 256 * MIB)
    eventually(lambda: available(cerne, "q") > whole - 20 * MIB)
    cerne.ok("set", "q", "--balloon", "160M")
    cerne.ok("restart", "q")
    eventually(lambda: _stats(cerne, "q")["guest_memory_bytes"] == 160 * MIB)


@pytest.mark.slow_if_emulated
def test_memory_is_plugged_and_given_back_while_it_runs(
    cerne: Cerne, engine: Engine, eventually: Eventually, own_kernel: None
) -> None:
    cerne.ok("run", "-d", "--name", "q", *engine.options, "tiny")
    before = _total(cerne)
    assert cerne.ok("set", "q", "--memory", "384M") == "q\n"
    eventually(lambda: _total(cerne) > before + 240 * MIB)
    assert "q" in cerne.ok("suspend", "q")
    cerne.ok("wake", "q")
    assert _total(cerne) > before + 240 * MIB
    cerne.ok("set", "q", "--memory", "256M")
    assert before + 100 * MIB < _total(cerne) < before + 140 * MIB
    assert json.loads(cerne.ok("inspect", "--json", "q"))["spec"]["memory"] == 256 * MIB
    assert "by whole blocks of 128M" in cerne.refused("set", "q", "--memory", "300M", status=2)
    assert "gives none of this back" in cerne.refused("set", "q", "--memory", "64M", status=2)
    cerne.ok("restart", "q")
    assert _total(cerne) > before + 100 * MIB


@pytest.mark.slow
@pytest.mark.not_if_emulated("test_resources_at_speed.py does it, in a tenth of the time")
def test_plugged_memory_is_forked_saved_and_restored(
    cerne: Cerne, engine: Engine, eventually: Eventually, own_kernel: None
) -> None:
    cerne.ok("run", "-d", "--name", "q", *engine.options, "tiny")
    cerne.ok("set", "q", "--memory", "256M")
    eventually(lambda: _free_of_plugged(cerne) > 100 * MIB)
    before = _free_of_plugged(cerne)
    cerne.ok("exec", "q", "--", "dd", "if=/dev/urandom", "of=/tmp/f", "bs=1M", "count=8")
    assert _free_of_plugged(cerne) <= before - 8 * MIB
    total, digest = _total(cerne), cerne.ok("exec", "q", "md5sum", "/tmp/f")
    cerne.ok("fork", "q", "--name", "r")
    cerne.ok("exec", "q", "rm", "/tmp/f")
    assert (_total(cerne, "r"), cerne.ok("exec", "r", "md5sum", "/tmp/f")) == (total, digest)
    cerne.ok("snapshot", "create", "r", "s")
    cerne.ok("exec", "r", "rm", "/tmp/f")
    cerne.ok("snapshot", "restore", "s")
    assert (_total(cerne, "r"), cerne.ok("exec", "r", "md5sum", "/tmp/f")) == (total, digest)


def _free_of_plugged(cerne: Cerne) -> int:
    """Free bytes of the zone that has the plugged memory, which the guest uses first."""
    script = "/zone +Movable/ { z = 1 } z && /pages free/ { print $3; exit }"
    return int(cerne.ok("exec", "q", "--", "awk", script, "/proc/zoneinfo") or 0) * 4096


def _total(cerne: Cerne, name: str = "q") -> int:
    """Bytes of memory that the guest's kernel has."""
    line = cerne.ok("exec", name, "--", "grep", "MemTotal", "/proc/meminfo")
    return int(line.split()[1]) * 1024


def test_what_cannot_be_set_is_refused(cerne: Cerne, engine: Engine) -> None:
    cerne.ok("create", "--name", "q", *engine.options, "tiny")
    for words, said in (
        ((), "no value to change"),
        (("--balloon", "129M"), "ask for 32M to 128M"),
        (("--balloon", "a lot"), "is not a size"),
        (("--cpu-weight", "0"), "is not a weight"),
    ):
        assert said in cerne.refused("set", "q", *words, status=2)
    assert "no machine named" in cerne.refused("set", "other", "--balloon", "64M", status=3)


@pytest.fixture
def weights() -> None:
    """Skips where this host does not let us weigh processes."""
    skip_without_limits()


def test_a_machine_is_weighed_while_it_runs(
    cerne: Cerne, engine: Engine, weights: None, eventually: Eventually
) -> None:
    cerne.ok("run", "-d", "--name", "q", "--cpu-weight", "50", *engine.options, "tiny")
    machine = cerne.machine("q")
    group = Path(f"/proc/{machine['pid']}/cgroup")
    assert f"cerne-{machine['id']}" in group.read_text()
    cerne.ok("set", "q", "--cpu-weight", "300")
    spec = json.loads(cerne.ok("inspect", "--json", "q"))["spec"]
    assert spec["resources"]["cpu"]["weight"] == 300
    note = CellNote.read(cerne.home / "run" / "m" / str(machine["id"]) / "group")
    assert note is not None
    assert all(place.is_dir() for place in note.groups)
    cerne.ok("kill", "q")
    eventually(lambda: not any(place.is_dir() for place in note.groups))
