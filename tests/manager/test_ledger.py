"""Random sequences of what machines do and of what befalls them: the ledger stays right.

Whatever starts, changes, crashes or is killed, no more is promised than the host has, each process
that runs has its promise, and nothing is promised to what does not run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from tests.manager.conftest import FakeEngine

from cerne import faults
from cerne.errors import CapacityError, ConflictError, NotFoundError
from cerne.host.members import MACHINE, Members
from cerne.manager import Home, Machine, Manager
from cerne.manager.capacity import needs_of
from cerne.manager.lock import is_held
from cerne.manager.store.promises import WHILE_RUNNING, Resource
from cerne.spec.asked import Adjustment
from cerne.spec.machine import machine_spec
from cerne.spec.upgrade import stored_spec
from cerne.units import MIB

_MEMORY = 400 * MIB
_CPUS = Decimal("1.5")
_BESIDE = 10 * MIB
_LIMITS = {Resource.CPU: int(_CPUS * 1000), Resource.MEMORY: _MEMORY}
_MOST = 8
"""So many machines are made at most."""
_MOST_STEPS = 14

_EXPECTED = (CapacityError, ConflictError, NotFoundError)
"""How an operation is refused: there is no room, or the machine is in another state, or gone."""

Operation = Callable[[Manager, str], None]

_OPERATIONS: dict[str, Operation] = {
    "start": lambda manager, name: manager.get(name).start(),
    "stop": lambda manager, name: manager.get(name).stop(timeout=0.0),
    "kill": lambda manager, name: manager.get(name).kill(),
    "suspend": lambda manager, name: manager.get(name).suspend(),
    "wake": lambda manager, name: manager.get(name).wake(),
    "pause": lambda manager, name: manager.get(name).pause(),
    "resume": lambda manager, name: manager.get(name).resume(),
    "fork": lambda manager, name: _fork(manager, name),
    "grow": lambda manager, name: manager.get(name).adjust(memory_guarantee="none"),
    "shrink": lambda manager, name: manager.get(name).adjust(memory_guarantee="32M"),
    "remove": lambda manager, name: manager.get(name).remove(force=True),
}


def _fork(manager: Manager, name: str) -> None:
    if len(manager.machines()) < _MOST - 1:
        manager.get(name).fork(2)


@dataclass(frozen=True)
class Act:
    """One thing that happens; each kind takes what it needs of the values."""

    kind: str
    which: int
    doing: str
    step: int
    memory: str
    guarantee: str
    cpus: str


_acts = st.builds(
    Act,
    kind=st.sampled_from(
        ["do"] * 5 + ["kill command"] * 4 + ["change"] * 2 + ["create", "crash", "look"]
    ),
    which=st.integers(0, _MOST - 1),
    doing=st.sampled_from([*_OPERATIONS, "start", "wake", "start"]),
    step=st.integers(0, _MOST_STEPS),
    memory=st.sampled_from(["64M", "128M"]),
    guarantee=st.sampled_from(["32M", "64M", "none"]),
    cpus=st.sampled_from(["0.25", "0.5", "1", "none"]),
)


class Ledger(RuleBasedStateMachine):
    """One home, whose machines are sleeping processes."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = FakeEngine()
        self.engine.needs_beside = _BESIDE
        self.manager = Manager(_new_home(), lambda _requested: self.engine)
        for memory in ("64M", "128M", "64M", "128M"):
            self.create(memory, "none", "0.25")
        for machine in self._machines()[:2]:
            machine.start()

    def teardown(self) -> None:
        try:
            self.look()
            for machine in self._machines():
                machine.remove(force=True)
            assert self.manager.capacity().promises == ()
        finally:
            for runtime in self.manager.home.machines_runtime.iterdir():
                Members(runtime).end()
            self.manager.close()
            self.engine.close()
            shutil.rmtree(self.manager.home.data)

    # One rule: among several hypothesis prefers those that need few values.
    @rule(act=_acts)
    def act(self, act: Act) -> None:
        machines = self._machines()
        if act.kind == "create" and len(machines) < _MOST:
            self.create(act.memory, act.guarantee, act.cpus)
        if act.kind == "look":
            self.look()
        if not machines:
            return
        machine = machines[act.which % len(machines)]
        match act.kind:
            case "do":
                self.do(machine, act.doing)
            case "kill command":
                self.kill_command(machine, act.doing, act.step)
            case "change":
                self.change(machine, act.guarantee, act.cpus)
            case "crash":
                self.crash(machine)

    def create(self, memory: str, guarantee: str, cpus: str) -> None:
        spec = machine_spec(
            name=f"m{uuid.uuid4().hex[:6]}",
            image="blank",
            memory=memory,
            memory_guarantee=guarantee,
            cpu_guarantee=cpus,
        )
        self.manager.create(spec)

    def do(self, machine: Machine, doing: str) -> None:
        with contextlib.suppress(*_EXPECTED):
            _OPERATIONS[doing](self.manager, machine.name)

    def change(self, machine: Machine, guarantee: str, cpus: str) -> None:
        changes = cast("Adjustment", {"memory_guarantee": guarantee, "cpu_guarantee": cpus})
        with contextlib.suppress(*_EXPECTED):
            machine.adjust(**changes)

    def crash(self, machine: Machine) -> None:
        """End its process, of which no command hears."""
        for process in Members(self.manager.home.machine_runtime(machine.id)).alive(MACHINE):
            process.send(signal.SIGKILL)
            process.wait(20)

    def kill_command(self, machine: Machine, doing: str, step: int) -> None:
        """Kill a command at one of its steps, or let it end if it has fewer."""
        pid = os.fork()
        if pid == 0:
            _run_and_die(self.manager.home, _OPERATIONS[doing], machine.name, step)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    def look(self) -> None:
        """After a command that looks at all, what is promised is what runs, no more and no less."""
        states = [machine.listed.state for machine in self.manager.machines()]
        self.manager.capacity()
        store = self.manager._store
        assert [record.state for record in store.machines()] == states
        for record in store.machines():
            assert not is_held(self.manager.home.machine_lock(record.id))
            spec = stored_spec(record.spec, record.name)
            needs = needs_of(spec, _BESIDE) if record.state.live else {}
            promised = store.promised_to(record)
            assert {each: promised.get(each, 0) for each in WHILE_RUNNING} == {
                each: needs.get(each, 0) for each in WHILE_RUNNING
            }
            assert promised[Resource.DISK] == MIB

    @invariant()
    def no_more_is_promised_than_there_is(self) -> None:
        for resource, limit in _LIMITS.items():
            assert sum(amount for each, amount in self._promises() if each is resource) <= limit

    @invariant()
    def what_runs_has_its_promise_and_fits(self) -> None:
        store, home = self.manager._store, self.manager.home
        used = dict.fromkeys(_LIMITS, 0)
        for record in store.machines():
            if Members(home.machine_runtime(record.id)).alive(MACHINE):
                promised = store.promised_to(record)
                for resource, amount in needs_of(
                    stored_spec(record.spec, record.name), _BESIDE
                ).items():
                    assert promised.get(resource, 0) >= amount
                    used[resource] += amount
        assert all(used[resource] <= limit for resource, limit in _LIMITS.items())

    def _promises(self) -> Iterator[tuple[Resource, int]]:
        return ((each.resource, each.amount) for each in self.manager._store.promises())

    def _machines(self) -> list[Machine]:
        records = self.manager._store.machines()
        return [self.manager.machine_of(record) for record in records if not record.incomplete]


def _run_and_die(home: Home, operation: Operation, name: str, step: int) -> None:
    left = step
    status = 1

    def die(_name: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(0)

    try:
        engine = FakeEngine()
        engine.needs_beside = _BESIDE
        faults.hook = die
        operation(Manager(home, lambda _requested: engine), name)
        status = 0
    except _EXPECTED:
        status = 0
    finally:
        os._exit(status)


@pytest.fixture
def small_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small host, whose homes are in memory, each with one image."""
    place = Path(tempfile.mkdtemp(prefix="cerne-", dir=_in_memory()))
    monkeypatch.setenv(_PLACE, str(place))
    monkeypatch.setenv("CERNE_HOME", str(place / "first"))
    monkeypatch.setattr("cerne.manager.capacity.supplied_memory", lambda: _MEMORY + 256 * MIB)
    monkeypatch.setattr("cerne.manager.capacity.supplied_cpus", lambda: _CPUS)
    raw = place / "blank.raw"
    raw.write_bytes(bytes(MIB))
    with Manager(Home.of_this_user(), lambda _requested: FakeEngine()) as manager:
        manager.images.import_(str(raw), "blank")
    yield
    shutil.rmtree(place)


_PLACE = "CERNE_TEST_PLACE"


def _new_home() -> Home:
    place = Path(os.environ[_PLACE])
    new = place / uuid.uuid4().hex[:6]
    shutil.copytree(place / "first" / "images", new / "images")
    os.environ["CERNE_HOME"] = str(new)
    return Home.of_this_user()


def _in_memory() -> Path | None:
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


def _run(examples: int, *, same: bool) -> None:
    run_state_machine_as_test(
        Ledger,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            derandomize=same,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            database=None,
        ),
    )


def test_a_few_sequences(small_host: None) -> None:
    _run(12, same=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_sequences(small_host: None) -> None:
    _run(1000, same=False)
