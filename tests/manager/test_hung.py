"""A machine whose process is stopped holds up nothing but itself, and can be ended."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable

import pytest
from tests.manager.conftest import FakeEngine

from cerne.errors import NotAnsweringError
from cerne.manager import Machine, Manager, State
from cerne.spec.machine import machine_spec


@pytest.fixture
def hung(machine: Machine) -> Machine:
    """A machine that runs, whose process is stopped."""
    machine.start()
    os.kill(_pid(machine), signal.SIGSTOP)
    # It takes a moment.
    os.waitpid(_pid(machine), os.WUNTRACED)
    return machine


def _pid(machine: Machine) -> int:
    process = machine.record.process
    assert process is not None
    return process.pid


def _interrupted(manager: Manager, machine: Machine, state: State) -> None:
    """Have a machine be as a command leaves it that is killed in the midst."""
    with sqlite3.connect(manager.home.store) as database:
        database.execute("UPDATE machines SET state = ? WHERE id = ?", (state, machine.id))


@pytest.mark.parametrize(
    "operate",
    [
        Machine.pause,
        Machine.resume,
        Machine.suspend,
        Machine.snapshot,
        Machine.fork,
        Machine.agent,
        lambda machine: machine.exec(["true"]),
    ],
)
def test_what_needs_its_process_is_refused_in_words_that_name_it(
    hung: Machine, operate: Callable[[Machine], object]
) -> None:
    with pytest.raises(NotAnsweringError) as caught:
        operate(hung)
    assert caught.value.message == (
        f"process {_pid(hung)} of web does not answer: it is stopped (T)"
    )
    assert f"kill -CONT {_pid(hung)}" in caught.value.hint
    assert "cerne kill web" in caught.value.hint
    assert hung.state is State.RUNNING


@pytest.mark.parametrize("state", [State.SAVING, State.STOPPING, State.RUNNING])
def test_it_is_listed_as_it_is_and_asked_nothing(
    manager: Manager, hung: Machine, asked: list[str], state: State
) -> None:
    _interrupted(manager, hung, state)
    assert [found.record.state for found in manager.machines()] == [state]
    assert asked == []


@pytest.mark.parametrize("state", [State.SAVING, State.STOPPING, State.RUNNING])
@pytest.mark.parametrize("end", [Machine.kill, lambda machine: machine.stop(timeout=0.1)])
def test_it_can_be_ended(
    manager: Manager,
    engine: FakeEngine,
    hung: Machine,
    state: State,
    end: Callable[[Machine], None],
) -> None:
    _interrupted(manager, hung, state)
    end(hung)
    assert hung.state is State.STOPPED
    assert engine.running() == 0


def test_stats_say_what_the_host_knows_and_that_it_hangs(hung: Machine) -> None:
    found = hung.stats()
    assert found.resident > 0
    assert found.guest is None
    assert found.hangs is not None
    assert f"process {_pid(hung)} of web" in found.hangs.message


def test_what_a_stopped_process_was_told_is_put_right_once_it_goes_on(
    manager: Manager, hung: Machine, asked: list[str]
) -> None:
    _interrupted(manager, hung, State.SAVING)
    assert hung.record.state == "saving"
    os.kill(_pid(hung), signal.SIGCONT)
    assert hung.record.state == "running"
    assert asked == ["break_off_saving", "resume"]


def test_a_damaged_record_is_that_machines_alone(manager: Manager, machine: Machine) -> None:
    manager.create(machine_spec(name="other", image="blank", memory="64M"))
    with sqlite3.connect(manager.home.store) as database:
        database.execute("UPDATE machines SET state = 'odd' WHERE name = 'web'")
    found = {found.name: found.record for found in manager.machines()}
    assert found["other"].state is State.DEFINED
    assert found["web"].state is State.FAILED
    assert "damaged" in found["web"].reason
    assert "'odd'" in found["web"].reason


def test_a_pool_is_removed_whatever_happens_to_one_of_its_machines(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = machine_spec(name="p", image="blank", memory="64M")
    pool = manager.create_pool("p", spec, 0)
    for name in ("a", "b", "c"):
        record = manager.create(spec.changed(name=name)).record
        manager._store.join_pool(record, "p")
    remove = Machine.remove

    def refused(machine: Machine, *, force: bool = False) -> None:
        if machine.name == "b":
            raise NotAnsweringError("it does not end")
        remove(machine, force=force)

    monkeypatch.setattr(Machine, "remove", refused)
    with pytest.raises(NotAnsweringError):
        pool.remove()
    assert [machine.name for machine in manager.machines()] == ["b"]
    assert manager.pools() == []
