"""What a machine's state does not allow, in words."""

from __future__ import annotations

from cerne.errors import NotAnsweringError, StateError
from cerne.manager.store import Record, State

_REMEDIES = {
    State.DEFINED: "start",
    State.STOPPED: "start",
    State.FAILED: "start",
    State.PAUSED: "resume",
    State.SUSPENDED: "wake",
}

_ADVICE = {state: f"{verb} it with: cerne {verb} {{name}}" for state, verb in _REMEDIES.items()} | {
    State.RUNNING: "use it as it is: cerne shell {name}; or suspend it: cerne suspend {name}",
    State.STARTING: "wait for it, and see: cerne ls",
    State.SAVING: "wait until it is saved, and see: cerne ls",
    State.STOPPING: "wait until it has ended: cerne wait {name}",
}

_MOST_NAMED = 2
"""How many states an error names."""

_PROCESS_STATES = {
    "T": "it is stopped (T)",
    "t": "a debugger holds it (t)",
    "D": "it waits in the kernel (D)",
}


def require_state(record: Record, *states: State) -> None:
    """Refuse what the machine's state does not allow.

    Raises:
        StateError: it is in none of these states.
        NotAnsweringError: its process is stopped, and will do nothing.
    """
    if record.state not in states:
        raise state_error(record, *states)
    refuse_stopped(record)


def state_error(record: Record, *states: State) -> StateError:
    """The error that a machine's state is none of those that allow what was asked."""
    reason = f" ({record.reason})" if record.reason else ""
    wanted = f", not {' or '.join(states)}" if len(states) <= _MOST_NAMED else ""
    return StateError(
        f"{record.name} is {record.state}{reason}{wanted}",
        hint=_ADVICE[record.state].format(name=record.name),
        machine=record.name,
    )


def refuse_stopped(record: Record) -> None:
    """Refuse a request to a machine's process if the process is stopped.

    Raises:
        NotAnsweringError: it is.
    """
    if record.process is not None and record.process.stopped():
        raise hung(record)


def hung(record: Record) -> NotAnsweringError:
    """The error that a machine's process does not answer, in words that name it and say why."""
    process = record.process
    if process is None:
        return NotAnsweringError(
            f"the process of {record.name} does not answer", machine=record.name
        )
    state = process.state()
    why = _PROCESS_STATES.get(state, f"it gave no answer in time (state {state})")
    resume = f"continue it: kill -CONT {process.pid}; or " if state == "T" else ""
    return NotAnsweringError(
        f"process {process.pid} of {record.name} does not answer: {why}",
        hint=f"{resume}end it: cerne kill {record.name}",
        machine=record.name,
    )
