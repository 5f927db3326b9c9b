"""Machines that are refused or abandoned leave nothing: no name in use, no memory promised."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.manager.conftest import FakeEngine, FakeInstance
from tests.processes import commands, parents

from cerne.client import Host
from cerne.engine.plan import LaunchPlan
from cerne.errors import CapacityError, ConflictError, EngineError, HostError
from cerne.host.process import ProcessIdentity
from cerne.manager import Manager, State
from cerne.manager.lock import held
from cerne.spec.machine import MachineSpec, machine_spec


def _spec(**fields: object) -> MachineSpec:
    return machine_spec(**{"name": "web", "image": "blank", "memory": "64M", **fields})


@pytest.fixture
def ended_client() -> ProcessIdentity:
    """A process that has ended."""
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    return replace(identity, start_time=identity.start_time - 1)


@pytest.mark.parametrize(
    "refusal",
    [ConflictError("the port is in use"), HostError("there is no tap"), CapacityError("no memory")],
)
def test_what_the_host_refuses_to_start_is_undone_and_the_error_says_so(
    host: Host, engine: FakeEngine, refusal: HostError
) -> None:
    engine.refusal = refusal
    with pytest.raises(type(refusal)) as caught:
        host.run(_spec(), keep_failed=True)
    assert "web was removed" in caught.value.hint
    assert host.machines() == []
    engine.refusal = None
    assert host.run(_spec(), keep_failed=True).state is State.RUNNING


def test_a_port_that_is_taken_while_the_process_starts_is_a_refusal_too(
    host: Host, engine: FakeEngine
) -> None:
    engine.failure = ConflictError("the port is in use")
    with pytest.raises(ConflictError):
        host.run(_spec(), keep_failed=True)
    assert host.machines() == []


def test_a_machine_that_failed_is_kept_and_the_error_says_how_to_look_and_remove(
    host: Host, engine: FakeEngine
) -> None:
    engine.failure = EngineError("it broke", hint="try again")
    with pytest.raises(EngineError) as caught:
        host.run(_spec(), keep_failed=True)
    assert caught.value.hint.startswith("try again\nweb is kept: ")
    assert "cerne logs web" in caught.value.hint
    assert "cerne rm web" in caught.value.hint
    assert host.get("web").state is State.FAILED


def test_no_hint_names_a_file_that_is_removed(
    manager: Manager, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speak_and_fail(_engine: FakeEngine, plan: LaunchPlan) -> FakeInstance:
        plan.console_log.write_text("last words")
        hint = f"its console log is {plan.console_log}\nits log is {plan.engine_log}"
        raise EngineError("it broke", hint=hint)

    monkeypatch.setattr(FakeEngine, "start", speak_and_fail)
    with pytest.raises(EngineError) as caught:
        manager.run(_spec())
    assert str(manager.home.machines) not in caught.value.hint
    assert "last words" in caught.value.hint
    assert caught.value.hint.endswith("\nweb was removed")


@pytest.mark.parametrize(
    "sweep",
    [
        lambda manager: manager.machines(),
        lambda manager: manager.create(_spec(name="other")),
        lambda manager: manager.get("waiting").start(),
    ],
)
def test_a_machine_whose_client_is_gone_is_removed_by_the_next_command(
    manager: Manager,
    engine: FakeEngine,
    ended_client: ProcessIdentity,
    sweep: Callable[[Manager], object],
) -> None:
    manager.create(_spec(name="waiting"))
    machine = manager.create(_spec(), client=ended_client)
    # Only what comes before its start is its own: it would be swept there.
    machine.start()
    assert engine.running() == 1
    sweep(manager)
    assert "web" not in [found.name for found in manager.machines()]
    assert not manager.home.machine_directory(machine.id).exists()
    assert not manager.home.machine_lock(machine.id).exists()


def test_what_another_command_works_on_is_left_to_it(
    manager: Manager, ended_client: ProcessIdentity
) -> None:
    machine = manager.create(_spec(), client=ended_client)
    with held(manager.home.machine_lock(machine.id), "stop", "web"):
        assert [found.name for found in manager.machines()] == ["web"]
    assert manager.machines() == []


def test_a_machine_stays_whose_client_lives(host: Host) -> None:
    with host.running(_spec()) as machine:
        assert [found.id for found in host.machines()] == [machine.id]
        assert machine.state is State.RUNNING
        assert len(_watchers()) == 1
    assert host.machines() == []


def test_a_forked_child_that_leaves_the_block_leaves_the_machine(host: Host) -> None:
    with host.running(_spec()) as machine:
        leaving = host.running(_spec(name="inner"))
        inner = leaving.__enter__()
        child = os.fork()
        if child == 0:
            leaving.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (machine.state, inner.state) == (State.RUNNING, State.RUNNING)
        leaving.__exit__(None, None, None)
    assert host.machines() == []


def test_a_machine_that_another_command_removed_is_no_error_at_the_end(host: Host) -> None:
    with host.running(_spec()):
        host.get("web").remove(force=True)
    assert host.machines() == []


def test_an_interrupted_start_leaves_nothing(host: Host, engine: FakeEngine) -> None:
    engine.failure = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), host.running(_spec()):
        pass
    assert host.machines() == []
    assert _watchers() == []


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt(), 0), (EngineError("broke"), 1)])
def test_the_log_of_an_interrupted_start_is_not_kept_as_a_failure(
    manager: Manager, engine: FakeEngine, error: BaseException, kept: int
) -> None:
    machine = manager.create(_spec())
    engine.failure = EngineError("it broke")
    with pytest.raises(EngineError):
        machine.start()
    machine._context.console_log.write_text("a guest's words")
    machine.undo(error)
    assert len(list(manager.home.failures.iterdir())) == kept


def _watchers() -> list[list[bytes]]:
    """Children of this process that wait for its end."""
    found, parent = commands(), parents()
    children = [found[pid] for pid in found if parent.get(pid) == os.getpid()]
    return [words for words in children if b"select.select(" in b" ".join(words)]
