"""A change of a machine by a command that is killed at a step with a name."""

from __future__ import annotations

import os
from typing import Unpack

from tests.manager.conftest import FakeEngine

from cerne import faults
from cerne.manager import Home, Manager
from cerne.spec.asked import Adjustment

_KILLED = 99


def adjust_killed_at(step: str, home: Home, **changes: Unpack[Adjustment]) -> None:
    """Change the machine ``web`` in a process of its own, which ends at the step."""
    pid = os.fork()
    if pid == 0:
        _adjust_and_die(step, home, changes)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == _KILLED


def _adjust_and_die(step: str, home: Home, changes: Adjustment) -> None:
    def die(name: str) -> None:
        if name == step:
            os._exit(_KILLED)

    try:
        faults.hook = die
        engine = FakeEngine()
        Manager(home, lambda _requested: engine).get("web").adjust(**changes)
    finally:
        os._exit(0)
