"""The life of a machine, over an engine that only pretends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.manager.conftest import FakeEngine
from tests.waiting import PATIENCE

from cerne.cli.lifecycle import _tell_if_killed
from cerne.cli.listing import ls
from cerne.client import Host
from cerne.engine.base import Ending
from cerne.errors import (
    BusyError,
    CapacityError,
    ConflictError,
    EngineError,
    GuestTimeoutError,
    HostError,
    InputError,
    NotFoundError,
    StateError,
)
from cerne.host.members import Members, start_member, supervisor_of
from cerne.host.notes import Notes
from cerne.manager import Manager, State
from cerne.manager.lock import held
from cerne.manager.machines.machine import Machine
from cerne.manager.machines.states import state_error
from cerne.manager.store import Record, Store
from cerne.spec.machine import MachineSpec, machine_spec
from cerne.units import MIB


def _spec(**fields: object) -> MachineSpec:
    return machine_spec(**{"name": "web", "image": "blank", "memory": "64M", **fields})


def _state(machine: Machine) -> State:
    # Asked anew each time, which a type checker would not do for an attribute.
    return machine.state


def test_a_guest_that_does_not_shut_down_is_killed_and_that_is_said(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.start()
    machine.stop(0.05)
    assert machine.state is State.STOPPED
    _tell_if_killed(machine)
    assert capsys.readouterr().err == "cerne: web was killed: it did not shut down within 0.05 s\n"


def _pid(machine: Machine) -> int:
    process = machine.record.process
    assert process is not None
    return process.pid


def test_any_free_port_is_chosen_at_each_start_and_kept_meanwhile(
    host: Host, engine: FakeEngine
) -> None:
    machine = host.create(_spec(ports=["0:80", "18082:81"]))
    assert [port.host_port for port in machine.ports] == [0, 18082]
    machine.start()
    (plan,) = engine.plans
    chosen, named = plan.forwards
    assert (chosen.guest_port, named.host_port) == (80, 18082)
    assert chosen.host_port != 0
    assert host.get("web").ports == (chosen, named)
    machine.kill()
    assert [port.host_port for port in machine.ports] == [0, 18082]


def test_from_definition_to_removal(manager: Manager, machine: Machine, engine: FakeEngine) -> None:
    assert _state(machine) is State.DEFINED
    machine.start()
    assert _state(machine) is State.RUNNING
    (plan,) = engine.plans
    assert (plan.name, plan.cpus, plan.memory) == ("web", 1, 64 << 20)
    assert plan.disks[0].path.exists()
    machine.kill()
    assert (_state(machine), machine.record.reason) == (State.STOPPED, "killed")
    assert engine.running() == 0
    machine.start()
    machine.remove(force=True)
    assert manager.machines() == []
    assert list(manager.home.machines.iterdir()) == []
    assert list(manager.home.machines_runtime.iterdir()) == []
    assert list(manager.home.locks.iterdir()) == []


def test_it_is_found_by_name_and_by_id(host: Host, machine: Machine) -> None:
    assert host.get("web").id == machine.id
    assert host.get(machine.id).name == "web"
    with pytest.raises(NotFoundError, match="no machine named other"):
        host.get("other")


def test_starting_twice_is_refused(machine: Machine, engine: FakeEngine) -> None:
    machine.start()
    with pytest.raises(StateError, match="running already"):
        machine.start()
    assert len(engine.plans) == 1


def test_a_machine_that_runs_is_not_removed(machine: Machine) -> None:
    machine.start()
    with pytest.raises(StateError) as caught:
        machine.remove()
    assert "--force" in caught.value.hint


def test_operations_on_a_machine_that_does_not_run(machine: Machine) -> None:
    machine.stop()
    machine.kill()
    for operation in (machine.pause, machine.resume, machine.agent, machine.stats, machine.console):
        with pytest.raises(StateError, match=r"web is defined, not (running|paused)"):
            operation()
    assert _state(machine) is State.DEFINED


def test_renaming(host: Host, machine: Machine) -> None:
    host.create(_spec(name="other"))
    with pytest.raises(ConflictError):
        machine.rename("other")
    with pytest.raises(InputError):
        machine.rename("a/b")
    machine.rename("renamed")
    assert host.get("renamed").spec.name == "renamed"
    machine.start()
    with pytest.raises(StateError):
        machine.rename("again")


def test_a_process_killed_by_hand_is_noticed(machine: Machine) -> None:
    machine.start()
    os.kill(_pid(machine), signal.SIGKILL)
    assert machine.wait(timeout=PATIENCE) is State.FAILED
    assert machine.record.reason == "its process was killed"


def test_a_guest_that_shut_down_is_stopped(machine: Machine, engine: FakeEngine) -> None:
    machine.start()
    engine.how_it_ended = Ending(orderly=True, reason="the guest shut down")
    os.kill(_pid(machine), signal.SIGTERM)
    assert machine.wait(timeout=PATIENCE) is State.STOPPED
    assert machine.record.reason == "the guest shut down"


def test_an_engine_that_refuses_changes_nothing(machine: Machine, engine: FakeEngine) -> None:
    engine.refusal = HostError("no such thing here", hint="get one")
    with pytest.raises(HostError):
        machine.start()
    assert _state(machine) is State.DEFINED


@pytest.mark.parametrize("failure", [EngineError("it broke"), KeyboardInterrupt()])
def test_a_start_that_fails_leaves_no_process(
    machine: Machine, engine: FakeEngine, failure: BaseException
) -> None:
    engine.failure = failure
    with pytest.raises(type(failure)):
        machine.start()
    assert engine.running() == 0
    assert _state(machine) is State.FAILED
    engine.failure = None
    machine.start()
    assert _state(machine) is State.RUNNING


def test_a_start_whose_command_was_killed_is_put_right(
    host: Host, machine: Machine, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    # As if the command had died after the process was there and before it was written down.
    with monkeypatch.context() as patch:
        patch.setattr("cerne.manager.store.Store.set_process", killed)
        patch.setattr("cerne.manager.machines.ending.Members.end", lambda _: None)
        patch.setattr("cerne.manager.machines.ending.ended", killed)
        with pytest.raises(SystemExit):
            machine.start()
    assert engine.running() == 1
    found = host.get("web")
    assert found.state is State.FAILED
    assert found.record.reason == "the command that started it was interrupted"
    assert engine.running() == 0


def test_a_program_that_names_a_machines_sockets_is_left_alone(
    manager: Manager, machine: Machine, engine: FakeEngine
) -> None:
    engine.failure = EngineError("it does not start")
    # As socat does that leads to a guest's socket.
    path = manager.home.machine_runtime(machine.id) / "vsock" / "host.sock"
    words = [sys.executable, "-c", "input()", f"UNIX-CONNECT:{path}"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as other:
        with pytest.raises(EngineError):
            machine.start()
        assert engine.running() == 0
        assert other.poll() is None
        other.kill()


def _helper_events(machine: Machine) -> list[str]:
    return [event.words for event in machine.events() if event.kind == "helper ended"]


def test_the_end_of_a_process_that_serves_a_machine_is_told(
    manager: Manager, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.start()
    runtime = manager.home.machine_runtime(machine.id)
    Notes(runtime).add("passt was killed; it was restarted")
    assert machine.unserved == []
    assert machine.state is State.RUNNING
    assert machine.state is State.RUNNING
    assert _helper_events(machine) == ["passt was killed; it was restarted"]
    # One whose supervisor was killed too is noticed by its registration.
    members = Members(runtime)
    for role in (supervisor_of("net0"), "net0"):
        start_member(members, role, ["/bin/true"], []).wait()
    assert manager.get("web").unserved == ["net0"]
    assert [each.state for each in (machine, machine)] == [State.RUNNING] * 2
    assert _helper_events(machine)[1:] == [
        "the process that serves net0 has ended, and is not restarted"
    ]
    ls()
    assert "running (degraded)" in capsys.readouterr().out
    # It is not started again while its supervisor does that.
    supervisor = start_member(members, supervisor_of("net0"), ["/bin/sleep", "1000"], [])
    while not members.alive(supervisor_of("net0")):
        assert supervisor.poll() is None
    assert machine.unserved == []
    machine.kill()
    # What serves a machine ends with it.
    assert supervisor.wait() != 0
    assert len(_helper_events(machine)) == 2


def test_what_an_interrupted_create_left_is_swept(manager: Manager, machine: Machine) -> None:
    left = manager.home.machine_directory("0123456789ab")
    left.mkdir()
    (left / "root.qcow2").write_bytes(b"x")
    busy = manager.home.machine_directory("ba9876543210")
    busy.mkdir()
    with held(manager.home.machine_lock("ba9876543210"), "create", "other"):
        manager.create(_spec(name="next"))
    assert not left.exists()
    assert busy.exists()
    assert manager.home.machine_directory(machine.id).exists()


def test_a_program_that_makes_many_machines_sweeps_now_and_then(
    manager: Manager, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.manager.manager._SWEEP_INTERVAL", 3600.0)
    manager.create(_spec(name="one"))
    left = manager.home.machine_directory("0123456789ab")
    left.mkdir()
    manager.create(_spec(name="two"))
    assert left.exists()
    with Manager(manager.home, lambda _: engine) as next_command:
        next_command.create(_spec(name="three"))
    assert not left.exists()


def test_a_create_that_fails_leaves_nothing(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cerne.storage.overlay.create_overlay", full)
    with pytest.raises(OSError, match="No space"):
        manager.create(_spec())
    assert manager.machines() == []
    assert list(manager.home.machines.iterdir()) == []


def test_more_than_the_host_has_is_refused_before_anything(
    manager: Manager, tmp_path: Path
) -> None:
    (tmp_path / "two").write_bytes(bytes(2 * MIB))
    manager.images.import_(str(tmp_path / "two"), "two")
    for fields in ({"cpus": 250}, {"memory": "60T"}):
        with pytest.raises(CapacityError):
            manager.create(_spec(**fields))
    with pytest.raises(InputError, match="smaller than the image"):
        manager.create(_spec(image="two", disk="1M"))
    assert list(manager.home.machines.iterdir()) == []


def test_another_operation_is_waited_for_or_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cerne.manager.lock.PATIENCE", 0.05)
    with (
        held(machine._context.lock_path, "snapshot", "web"),
        pytest.raises(BusyError, match="web is busy: snapshot"),
    ):
        machine.start()


def test_many_starts_at_once_start_it_once(machine: Machine, engine: FakeEngine) -> None:
    refused: list[StateError] = []

    def start() -> None:
        try:
            machine.start()
        except StateError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(engine.plans), len(refused)) == (1, 7)


def test_an_image_in_use_is_kept(manager: Manager, machine: Machine) -> None:
    with pytest.raises(ConflictError, match="in use by the machine web"):
        manager.remove_image("blank")
    machine.remove()
    manager.remove_image("blank")
    with pytest.raises(NotFoundError):
        manager.images.get("blank")


def test_run_leaves_nothing_of_a_machine_that_did_not_start(host: Host, engine: FakeEngine) -> None:
    engine.failure = EngineError("it broke")
    with pytest.raises(EngineError):
        host.run(_spec())
    assert host.machines() == []
    with pytest.raises(EngineError):
        host.run(_spec(), keep_failed=True)
    assert [machine.state for machine in host.machines()] == [State.FAILED]


def test_what_a_failed_machine_said_is_kept(manager: Manager, machine: Machine) -> None:
    machine.start()
    machine.console_log.write_text("last words")
    os.kill(_pid(machine), signal.SIGKILL)
    machine.wait(timeout=PATIENCE)
    machine.remove()
    assert manager.home.failure_log("web").read_text() == "last words"


def test_stats_are_the_processs_own(machine: Machine) -> None:
    machine.start()
    found = machine.stats()
    assert found.memory == 64 << 20
    assert 0 < found.resident < 64 << 20
    assert found.threads == 1
    assert found.disk > 0


def test_a_machine_without_sockets_says_what_it_lacks(machine: Machine) -> None:
    with pytest.raises(StateError):
        machine.vsock_connect(1)
    machine.start()
    assert machine.vsock == ""
    for use in (machine.vsock_connect, machine.vsock_listen):
        with pytest.raises(HostError, match="no vsock") as caught:
            use(1)
        assert "modprobe vhost_vsock" in caught.value.hint


def test_free_names_are_free(host: Host, machine: Machine) -> None:
    assert host.free_name() != machine.name


def test_a_wait_beside_an_operation_does_not_spin(
    machine: Machine, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.start()
    looks = []
    get = Store.get

    def count(store: Store, machine_id: str) -> Record:
        looks.append(machine_id)
        return get(store, machine_id)

    monkeypatch.setattr(Store, "get", count)
    process = machine.record.process
    assert process is not None
    with held(manager.home.machine_lock(machine.id), "stop", "web"):
        process.send(signal.SIGKILL)
        process.wait()
        looks.clear()
        with pytest.raises(GuestTimeoutError):
            manager.get("web").wait(1.2)
    assert len(looks) < 20


def test_a_wrong_state_says_what_to_type(machine: Machine) -> None:
    machine.start()
    with pytest.raises(StateError, match="web is running") as refused:
        machine.wake()
    assert "cerne shell web" in refused.value.hint
    assert all(state_error(replace(machine.record, state=state)).hint for state in State)
