"""Machines for asyncio: they wait side by side, and a cancelled command is killed."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from tests.waiting import PATIENCE

from cerne.client.run import _asynchronous
from cerne.errors import GuestTimeoutError, StateError
from cerne.manager import Machine, Manager, State
from cerne.manager.asynchronous import AsyncMachine
from cerne.spec.machine import machine_spec

_MANY = 50


def test_many_commands_run_at_the_same_time(
    machine: Machine, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(_MANY)
    monkeypatch.setattr(Machine, "exec", lambda self, argv, **_options: together.wait(PATIENCE))

    async def run() -> None:
        machines = [AsyncMachine(machine) for _ in range(_MANY)]
        await asyncio.gather(*(one.exec(["true"]) for one in machines))

    asyncio.run(run())


def test_more_commands_than_there_are_ports_wait_for_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, running, most = threading.Lock(), set[int](), [0]

    def run_one(_self: Machine, _argv: list[str], **_options: object) -> None:
        with lock:
            running.add(threading.get_ident())
            most[0] = max(most[0], len(running))
        time.sleep(0.01)
        with lock:
            running.discard(threading.get_ident())

    monkeypatch.setattr(Machine, "exec", run_one)

    async def run() -> None:
        one = AsyncMachine(machine)
        await asyncio.gather(*(one.exec(["true"]) for _ in range(_MANY)))

    asyncio.run(run())
    assert 1 < most[0] <= 8


def test_a_command_that_is_cancelled_is_killed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, killed = threading.Event(), threading.Event()

    class Process:
        def signal(self, number: int) -> None:
            assert number == 9
            killed.set()

    def run_one(
        _self: Machine, _argv: list[str], *, started: Callable[[Process], None], **_: object
    ) -> None:
        started(Process())
        begun.set()
        killed.wait(PATIENCE)

    monkeypatch.setattr(Machine, "exec", run_one)

    async def run() -> None:
        command = asyncio.create_task(AsyncMachine(machine).exec(["sleep", "1000"]))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command

    asyncio.run(run())
    assert killed.wait(PATIENCE)


def test_an_error_of_a_machine_is_raised_where_it_is_awaited(machine: Machine) -> None:
    with pytest.raises(StateError):
        asyncio.run(AsyncMachine(machine).pause())


def test_the_ends_of_many_machines_are_waited_for(manager: Manager) -> None:
    machines = [
        manager.run(machine_spec(name=f"m{n}", image="blank", memory="64M")) for n in range(10)
    ]

    async def run() -> list[State]:
        waits = [asyncio.create_task(AsyncMachine(one).wait(PATIENCE)) for one in machines]
        await asyncio.sleep(0)
        await asyncio.gather(*(AsyncMachine(one).kill() for one in machines))
        return await asyncio.gather(*waits)

    # A killed machine has failed for those who see its end before `kill` has recorded it.
    assert set(asyncio.run(run())) <= {State.STOPPED, State.FAILED}


def test_a_wait_has_an_end(manager: Manager) -> None:
    running = manager.run(machine_spec(name="web", image="blank", memory="64M"))
    with pytest.raises(GuestTimeoutError, match="web is still running"):
        asyncio.run(AsyncMachine(running).wait(0.05))


def test_events_come_as_they_happen(manager: Manager) -> None:
    running = manager.run(machine_spec(name="web", image="blank", memory="64M"))

    async def run() -> list[str]:
        one = AsyncMachine(running)
        kinds: list[str] = []
        async with contextlib.aclosing(one.events()) as events:
            async for event in events:
                kinds.append(event.kind)
                if event.kind == "started":
                    await one.kill()
                if event.kind == "stopped":
                    break
        return kinds

    assert asyncio.run(asyncio.wait_for(run(), 60))[-1] == "stopped"


def test_a_machine_whose_start_is_cancelled_is_removed(machine: Machine) -> None:
    begun, go_on, left = threading.Event(), threading.Event(), threading.Event()

    @contextlib.contextmanager
    def run() -> Iterator[Machine]:
        begun.set()
        go_on.wait(PATIENCE)
        yield machine
        left.set()

    async def cancel() -> None:
        async def enter() -> None:
            async with _asynchronous(run)():
                pytest.fail("it was cancelled before")

        entering = asyncio.create_task(enter())
        while not begun.is_set():
            await asyncio.sleep(0.01)
        entering.cancel()
        await asyncio.sleep(0.01)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await entering

    asyncio.run(cancel())
    assert left.is_set()
