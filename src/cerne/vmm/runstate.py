"""The run state of a machine: it runs, or is paused, until it has ended."""

from __future__ import annotations

from enum import Enum


class RunState(Enum):
    """The value is QMP's name of the state (RunState of qapi/run-state.json)."""

    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "shutdown"
