"""CPUs that a machine gets while it runs, and its guest uses.

`tests/e2e/test_kvm_at_speed.py` does the same with the engine `native` by ACPI.
"""

from __future__ import annotations

import os

import pytest
from tests.e2e.conftest import Cerne, Engine


def _used(cerne: Cerne, name: str) -> str:
    return cerne.ok("exec", name, "nproc").strip()


@pytest.mark.not_if_emulated("a Linux without ACPI was not seen to start a CPU that came")
def test_a_running_machine_gets_more_cpus(cerne: Cerne, engine: Engine, no_templates: None) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("this host has one CPU")
    options = ("--engine", engine.name, "--memory", "128M", "--max-cpus", "2")
    cerne.ok("run", "-d", "--name", "q", *options, "tiny")
    assert _used(cerne, "q") == "1"
    assert cerne.ok("set", "q", "--cpus", "2") == "q\n"
    assert _used(cerne, "q") == "2"
    cerne.ok("set", "q", "--cpus", "2")
    cerne.ok("fork", "q", "--name", "r")
    assert _used(cerne, "r") == "2"
    cerne.ok("suspend", "q")
    cerne.ok("wake", "q")
    assert _used(cerne, "q") == "2"
