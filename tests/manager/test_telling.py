"""Guests are told who they are, the time and their mounts, whoever is killed meanwhile."""

from __future__ import annotations

import signal
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from tests.manager.conftest import FakeEngine, FakeInstance
from tests.manager.test_faults import run_killed_at

from cerne.engine.base import RunState
from cerne.engine.record import InstanceRecord
from cerne.errors import (
    CerneError,
    ConflictError,
    EngineError,
    GuestError,
    GuestTimeoutError,
    InputError,
    StateError,
)
from cerne.guest import ExecResult
from cerne.guest.client import Renewal
from cerne.images.parts import Parts
from cerne.images.store import ImageStore
from cerne.manager import Machine, Manager, State
from cerne.spec.machine import machine_spec

_MOST_STEPS = 40

Operation = Callable[[Manager], None]


class FakeAgent:
    """An agent that writes what it is told to a file of its machine, which other processes see."""

    failure: GuestError | None = None
    growing: GuestError | None = None
    renewal = Renewal(clone=False, failed=())
    machines: ClassVar[list[str]] = []
    """Of which machine guests were told that they are."""
    waits: Callable[[], None] | None = None

    def __init__(self, instance: FakeInstance) -> None:
        self._log = instance.record.logs / "told"
        self._process = instance.process

    def wait_ready(self, _timeout: float, alive: Callable[[], bool]) -> None:
        if FakeAgent.waits is not None:
            FakeAgent.waits()
        alive()
        self._say("ready")

    def renew(self, *, hostname: str, machine: str, **_values: object) -> Renewal:
        if FakeAgent.failure is not None:
            raise FakeAgent.failure
        FakeAgent.machines.append(machine)
        self._say(f"name {hostname}")
        return FakeAgent.renewal

    def grow_root(self) -> None:
        self._say("grow")
        if FakeAgent.growing is not None:
            raise FakeAgent.growing

    def set_time(self) -> None:
        self._say("time")

    def shutdown(self) -> None:
        self._process.send(signal.SIGKILL)

    def run(self, argv: Sequence[str], **_values: object) -> ExecResult:
        self._say(f"mount {argv[4]}" if len(argv) > 4 else "script")
        return ExecResult(0, None, b"", b"")

    def _say(self, what: str) -> None:
        with self._log.open("a") as file:
            file.write(f"{what}\n")


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch, asked: list[str]) -> list[str]:
    """Has guests with agents; what their processes were asked."""
    monkeypatch.setattr(FakeInstance, "agent", lambda instance: FakeAgent(instance))
    monkeypatch.setattr(FakeAgent, "failure", None)
    monkeypatch.setattr(FakeAgent, "waits", None)
    monkeypatch.setattr(FakeAgent, "machines", [])
    monkeypatch.setenv("CERNE_TEMPLATES", "yes")
    return asked


@pytest.fixture
def web(manager: Manager, agents: list[str], tmp_path: Path) -> Machine:
    """A machine whose guest has an agent."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    work = manager.home.images / "work"
    parts = Parts(disk=disk.rename(work / "disk"), disk_size=1 << 20, agent=True)
    manager.images.add("with-agent", parts, source="a test")
    return manager.create(machine_spec(name="web", image="with-agent", memory="64M"))


def _told(manager: Manager, machine: Machine) -> list[str]:
    path = manager.home.machine_directory(machine.id) / "told"
    return path.read_text().splitlines() if path.exists() else []


def _start(manager: Manager) -> None:
    manager.get("web").start(cold=True)


def _start_from_template(manager: Manager) -> None:
    manager.get("web").start()


def _wake(manager: Manager) -> None:
    manager.get("web").wake()


def _restore(manager: Manager) -> None:
    manager.snapshot("kept").restore()


def _restore_as(manager: Manager) -> None:
    manager.snapshot("kept").restore_as("copy")


def _fork(manager: Manager) -> None:
    manager.get("web").fork(2)


def _rename(manager: Manager) -> None:
    machine = manager.machines()[0]
    machine.rename("other" if machine.name == "web" else "web")


def _resume(manager: Manager) -> None:
    manager.get("web").resume()


def _defined(manager: Manager, machine: Machine) -> None:
    machine.remove(force=True)
    manager.create(machine_spec(name="web", image="with-agent", memory="64M"))


def _warm(manager: Manager, machine: Machine) -> None:
    _defined(manager, machine)
    manager.warm(machine.spec)


def _suspended(_manager: Manager, machine: Machine) -> None:
    if machine.state is not State.SUSPENDED:
        _running(_manager, machine)
        machine.suspend()


def _running(_manager: Manager, machine: Machine) -> None:
    if machine.state is State.PAUSED:
        machine.resume()
    elif machine.state is not State.RUNNING:
        machine.start(cold=True)
    machine.agent()


def _kept(manager: Manager, machine: Machine) -> None:
    _running(manager, machine)
    if not manager.snapshots():
        machine.snapshot("kept")


def _paused(_manager: Manager, machine: Machine) -> None:
    if machine.state is State.RUNNING:
        machine.agent()
        machine.pause()


@pytest.mark.parametrize(
    ("operation", "begin"),
    [
        (_start, _defined),
        (_start_from_template, _warm),
        (_wake, _suspended),
        (_restore, _kept),
        (_restore_as, _kept),
        (_fork, _running),
        (_rename, _running),
        (_resume, _paused),
    ],
)
def test_whoever_was_killed_the_guest_is_told_before_it_is_used(
    manager: Manager,
    web: Machine,
    operation: Operation,
    begin: Callable[[Manager, Machine], None],
) -> None:
    web.start(cold=True)
    steps = 0
    for step in range(_MOST_STEPS):
        begin(manager, manager.machines()[0])
        if not run_killed_at(step, operation, manager.home):
            break
        steps += 1
        for machine in manager.machines():
            # What a listing shows is what its process does; and to be told is what remains.
            record = machine.record
            if record.state is State.RUNNING:
                assert record.untold or _told(manager, machine)
                machine.agent()
                names = [told for told in _told(manager, machine) if told.startswith("name")]
                assert names[-1] == f"name {machine.name}"
                assert not machine.record.untold
                assert machine.record.ready is not None
            if machine.name not in ("web", "other"):
                machine.remove(force=True)
    assert 0 < steps < _MOST_STEPS


def test_a_machine_that_was_paused_is_told_the_time(manager: Manager, web: Machine) -> None:
    web.start(cold=True)
    web.pause()
    web.resume()
    assert _told(manager, web)[-1] == "time"
    web.resume()
    assert _told(manager, web).count("time") == 1


def test_directories_are_mounted_by_the_next_command(
    manager: Manager, web: Machine, tmp_path: Path
) -> None:
    step = _step(manager)
    manager.get("web").remove()
    fields = {"name": "web", "image": "with-agent", "memory": "64M"}
    machine = manager.create(machine_spec(**fields, mounts=(f"{tmp_path}:/mnt",)))
    assert run_killed_at(step, _start, manager.home)
    machine.agent()
    assert _told(manager, machine) == ["ready", "mount /mnt", "name web"]


def test_start_settles_what_a_killed_start_left(manager: Manager, web: Machine) -> None:
    assert run_killed_at(_step(manager), _start, manager.home)
    machine = manager.get("web")
    machine.start()
    assert _told(manager, machine) == ["ready", "name web"]
    with pytest.raises(StateError, match="running already"):
        machine.start()


def test_a_machine_that_is_paused_while_it_starts_is_not_killed(
    manager: Manager, web: Machine
) -> None:
    def pause() -> None:
        FakeAgent.waits = None
        Manager(manager.home, lambda _requested: FakeEngine()).get("web").pause()

    FakeAgent.waits = pause
    with pytest.raises(StateError, match="was paused before") as caught:
        web.start(cold=True)
    assert "cerne resume web" in caught.value.hint
    assert caught.value.__cause__ is not caught.value
    assert web.state is State.PAUSED
    web.resume()
    assert _told(manager, web)[-1] == "name web"


def test_a_pause_that_fails_is_recorded_as_what_is(web: Machine, engine: FakeEngine) -> None:
    web.start(cold=True)
    web.pause()

    engine.silent = True
    web.pause()
    assert web.state is State.PAUSED
    with pytest.raises(EngineError):
        web.resume()
    assert web.state is State.PAUSED


@pytest.mark.parametrize(
    ("status", "state"), [(RunState.PAUSED, "paused"), (RunState.RUNNING, "running")]
)
def test_a_stop_that_was_killed_leaves_what_the_process_says(
    manager: Manager,
    web: Machine,
    status: RunState,
    state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web.start(cold=True)
    web.pause()

    def stop(manager: Manager) -> None:
        manager.get("web").stop()

    assert run_killed_at(0, stop, manager.home)
    monkeypatch.setattr(FakeInstance, "status", lambda _instance: status)
    assert web.state == state
    assert web.record.untold == ("time" if status is RunState.RUNNING else "")


def test_a_guest_that_cannot_be_told_its_name_is_told_later(manager: Manager, web: Machine) -> None:
    web.start(cold=True)
    FakeAgent.failure = GuestError("it hangs")
    with pytest.raises(GuestError, match="has the name other now"):
        web.rename("other")
    assert (web.name, web.record.name) == ("other", "other")
    FakeAgent.failure = None
    web.agent()
    assert _told(manager, web)[-1] == "name other"


def test_two_commands_tell_a_guest_once(manager: Manager, web: Machine) -> None:
    assert run_killed_at(_step(manager), _start, manager.home)
    others = [threading.Thread(target=manager.get("web").agent) for _ in range(4)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert _told(manager, manager.get("web")) == ["ready", "name web"]


def _step(manager: Manager) -> int:
    """The step of a cold start at which its process runs, and nothing has been told."""
    for step in range(_MOST_STEPS):
        assert run_killed_at(step, _start, manager.home)
        found = manager.get("web")
        untold = found.state is State.RUNNING and found.record.untold
        found.remove(force=True)
        manager.create(machine_spec(name="web", image="with-agent", memory="64M"))
        if untold:
            return step
    raise AssertionError("there is no such step")


def test_a_wake_that_was_killed_before_the_memory_was_there_can_be_done_again(
    manager: Manager, web: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.start(cold=True)
    # QEMU takes "cont" while it waits for its memory, and goes on once that has come.
    monkeypatch.setattr(FakeInstance, "status", lambda _instance: RunState.HELD)
    for step in range(_MOST_STEPS):
        if web.state is State.RUNNING:
            web.suspend()
        assert run_killed_at(step, _wake, manager.home)
        if web.record.state is State.RUNNING:
            assert step > 0
            return
        assert web.state is State.SUSPENDED
        assert manager.home.saved(web.id).exists()


def _suspend(manager: Manager) -> None:
    manager.get("web").suspend()


def test_a_guest_whose_saving_was_killed_is_told_the_time(manager: Manager, web: Machine) -> None:
    web.start(cold=True)
    settled = 0
    for step in range(_MOST_STEPS):
        if not run_killed_at(step, _suspend, manager.home):
            break
        if web.state is State.SUSPENDED:
            web.wake()
            continue
        settled += 1
        assert (web.state, web.record.untold) == (State.RUNNING, "time")
        assert not manager.home.saved(web.id).exists()
        web.agent()
        assert _told(manager, web)[-1] == "time"
    assert settled


def test_what_was_saved_is_kept_while_the_process_does_not_answer(
    manager: Manager, web: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.start(cold=True)
    process = web.record.process
    assert process is not None
    saved = manager.home.saved(web.id)
    for step in range(_MOST_STEPS):
        assert run_killed_at(step, _suspend, manager.home)
        if saved.exists():
            break
        assert web.state is State.RUNNING

    def hangs(_instance: FakeInstance) -> RunState:
        raise EngineError("it does not answer")

    monkeypatch.setattr(FakeInstance, "status", hangs)
    assert web.state == "saving"
    assert saved.exists()
    process.send(signal.SIGKILL)
    process.wait()
    assert web.state == "suspended"


def test_a_stopped_process_is_not_waited_for_to_be_told_a_name(web: Machine) -> None:
    web.start(cold=True)
    process = web.record.process
    assert process is not None
    process.send(signal.SIGSTOP)
    while process.state() != "T":
        pass
    with pytest.raises(GuestError, match="it is stopped"):
        web.rename("other")
    assert web.name == "other"
    process.send(signal.SIGCONT)
    web.agent()
    assert not web.record.untold


def test_a_guest_is_reached_without_a_look_at_its_image(
    manager: Manager, web: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object) -> None:
        raise AssertionError("the image was looked at")

    web.start(cold=True)
    monkeypatch.setattr(ImageStore, "get", look)
    manager.get("web").agent()
    web.pause()
    web.resume()
    web.rename("other")
    assert _told(manager, web)[-1] == "name other"


def test_what_an_older_cerne_started_is_reached_and_its_record_kept(
    manager: Manager, web: Machine
) -> None:
    web.start(cold=True)
    with sqlite3.connect(manager.home.store) as database:
        database.execute("UPDATE machines SET instance = ''")
    database.close()
    found = manager.get("web")
    assert found.record.instance == ""
    found.agent()
    kept = InstanceRecord.from_json(found.record.instance)
    assert (kept.process, kept.agent) == (found.record.process, True)
    found.kill()
    assert found.record.instance == ""


def test_a_start_from_a_template_keeps_to_its_time(
    manager: Manager, web: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest is slow, such as one whose processor has a tiny limit."""
    _warm(manager, web)
    times = []

    def renew(_agent: FakeAgent, *, timeout: float, **_values: object) -> None:
        times.append(timeout)
        raise GuestTimeoutError("the guest's agent does not answer")

    monkeypatch.setattr(FakeAgent, "renew", renew)
    with pytest.raises(GuestTimeoutError, match="web was not ready after 5 s"):
        manager.get("web").start(5)
    assert len(times) == 1
    assert 1 <= times[0] <= 5
    assert manager.get("web").state is State.FAILED


def test_each_guest_is_told_whose_it_is(manager: Manager, web: Machine) -> None:
    _running(manager, web)
    web.fork(1, names=["own"])
    web.kill()
    manager.create(machine_spec(name="true", image="with-agent", memory="64M", identity="kept"))
    manager.get("true").start(cold=True)
    manager.get("true").fork(1, names=["copy"])
    assert FakeAgent.machines == [web.id, manager.get("own").id, "", ""]


@pytest.mark.parametrize(
    ("renewal", "said"),
    [
        (Renewal(clone=True, failed=("ssh-keygen -A",)), "in its guest this failed: ssh-keygen -A"),
        (Renewal(clone=False, failed=(), kept=True), "kept its source's machine-id"),
    ],
)
def test_what_a_clone_kept_is_said(
    manager: Manager,
    web: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    renewal: Renewal,
    said: str,
) -> None:
    _running(manager, web)
    monkeypatch.setattr(FakeAgent, "renewal", renewal)
    web.fork(1)
    assert said in caplog.text


def test_a_larger_root_disk_is_grown_into_or_it_is_said_why_not(
    manager: Manager,
    web: Machine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    web.start(cold=True)
    assert "grow" not in _told(manager, web)
    web.kill()
    web.adjust(disk="2M")
    web.start()
    assert "grow" in _told(manager, web)
    web.kill()
    monkeypatch.setattr(FakeAgent, "growing", GuestError("the root is on partition 1"))
    web.start()
    assert "did not grow: the root is on partition 1" in caplog.text


def _create_image(manager: Manager) -> None:
    manager.get("web").create_image("gold")


def test_an_image_of_a_machine_is_made_whole_or_not_at_all(
    manager: Manager, web: Machine, qemu: Path
) -> None:
    steps = 0
    for step in range(_MOST_STEPS):
        if not run_killed_at(step, _create_image, manager.home):
            break
        steps += 1
        names = [image.name for image in manager.images.list()]
        assert [machine.name for machine in manager.machines()] == ["web"]
        assert "gold" not in names
        manager.get("web").rename("web2")
        manager.get("web2").rename("web")
    assert steps >= 4
    image = manager.images.get("gold")
    assert (image.agent, image.source) == (True, "machine web")
    assert manager.operations()[-1].result == {"image": "gold", "digest": image.digest}
    manager.create(machine_spec(name="of-gold", image="gold", memory="64M"))
    with pytest.raises(ConflictError, match="in use by the machine of-gold"):
        manager.remove_image("gold")
    web.remove()
    manager.get("of-gold").remove()
    manager.remove_image("gold")


@pytest.mark.parametrize(("name", "error"), [("tiny", InputError), ("with-agent", ConflictError)])
def test_names_that_an_image_of_a_machine_cannot_have(
    manager: Manager, web: Machine, name: str, error: type[CerneError]
) -> None:
    with pytest.raises(error):
        web.create_image(name)
    assert [machine.name for machine in manager.machines()] == ["web"]


def test_no_image_is_made_of_a_machine_that_runs_or_has_no_disk(
    manager: Manager, web: Machine
) -> None:
    web.start(cold=True)
    with pytest.raises(StateError, match="is made of a machine that is stopped") as refused:
        web.create_image("gold")
    assert refused.value.hint.startswith("cerne stop web")
