"""A machine for asyncio: commands, waits and events of many machines, all at the same time.

A command in a guest and a change of a machine have a thread each, which no pool keeps waiting. The
end of a process and new events are waited for on the event loop itself (pidfd_open(2), fifo(7)).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, BinaryIO, Literal, TypedDict, TypeVar, Unpack, overload

from cerne.engine.plan import AGENT_PORTS
from cerne.errors import CerneError
from cerne.manager.machines.wait import still_live
from cerne.units import parse_duration

if TYPE_CHECKING:
    from cerne.guest import ExecResult, ExecTextResult, GuestProcess
    from cerne.manager.machines.machine import Machine, Snapshot
    from cerne.manager.store import Event, State
    from cerne.manager.store.changes import Changes

_T = TypeVar("_T")
_LOOKING = 1.0
"""Seconds after which a machine without a process is looked at again: its command may be killed."""


class ExecOptions(TypedDict, total=False):
    """What `AsyncMachine.exec` takes beside the command: see `Machine.exec`."""

    env: Mapping[str, str] | None
    cwd: str | None
    user: str | None
    stdin: bytes | BinaryIO | Iterable[bytes] | None
    input: bytes | str | None
    check: bool
    timeout: float | str | None


class AsyncMachine:
    """A machine whose methods are awaited; `machine` is the same one for everything else.

    A task that is cancelled while a command runs in the guest kills that command. Any other
    operation goes on to its end, as operations on machines are whole or undone.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._turns: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    def __repr__(self) -> str:
        return f"<AsyncMachine {self.machine.name}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self.machine.name

    @property
    def state(self) -> State:
        """What it does now."""
        return self.machine.state

    @overload
    async def exec(
        self,
        argv: Sequence[str],
        *,
        text: Literal[False] = False,
        **options: Unpack[ExecOptions],
    ) -> ExecResult: ...

    @overload
    async def exec(
        self, argv: Sequence[str], *, text: Literal[True], **options: Unpack[ExecOptions]
    ) -> ExecTextResult: ...

    async def exec(
        self, argv: Sequence[str], *, text: bool = False, **options: Unpack[ExecOptions]
    ) -> ExecResult | ExecTextResult:
        """Run a command in its guest, as `Machine.exec` does.

        Raises:
            CerneError: what `Machine.exec` raises.
        """
        command = _Command()
        run = partial(self.machine.exec, argv, started=command.started, **options)
        async with self._ports:
            try:
                if text:
                    return await in_thread(partial(run, text=True))
                return await in_thread(run)
            except asyncio.CancelledError:
                command.kill()
                raise

    async def wait(self, timeout: float | str | None = None) -> State:
        """Wait until it does not run, at most `timeout` seconds; its state then.

        Raises:
            GuestTimeoutError: it still runs.
        """
        limit = None if timeout is None else parse_duration(timeout)
        try:
            async with asyncio.timeout(limit):
                return await self._ended()
        except TimeoutError as error:
            raise still_live(self.name, self.state, limit) from error

    async def events(self, after: int = 0) -> AsyncGenerator[Event, None]:
        """What happened to it after the event of this number, and then what happens, for ever."""
        with self.machine.changes() as changes:
            while True:
                for event in await in_thread(partial(self.machine.events, after)):
                    after = event.number
                    yield event
                await _changed(changes)

    async def start(self, timeout: float | str | None = None) -> None:
        """Start it, as `Machine.start` does."""
        await in_thread(partial(self.machine.start, timeout))

    async def stop(self, timeout: float | str | None = None) -> None:
        """Stop it, as `Machine.stop` does."""
        await in_thread(partial(self.machine.stop, *([] if timeout is None else [timeout])))

    async def kill(self) -> None:
        """End its process at once."""
        await in_thread(self.machine.kill)

    async def pause(self) -> None:
        """Pause its vCPUs."""
        await in_thread(self.machine.pause)

    async def resume(self) -> None:
        """Let its vCPUs run again."""
        await in_thread(self.machine.resume)

    async def suspend(self) -> None:
        """Write its memory to the disk and end its process."""
        await in_thread(self.machine.suspend)

    async def wake(self) -> None:
        """Let it go on from where it was suspended."""
        await in_thread(self.machine.wake)

    async def snapshot(self, name: str | None = None) -> Snapshot:
        """Keep it as it is, as `Machine.snapshot` does."""
        return await in_thread(partial(self.machine.snapshot, name))

    async def fork(self, count: int = 1) -> list[AsyncMachine]:
        """Machines that go on from where it is, as `Machine.fork` makes them."""
        return [AsyncMachine(child) for child in await in_thread(partial(self._fork, count))]

    async def copy_in(self, local: Path | str, remote: str) -> None:
        """Copy a file or a directory of this host into its guest."""
        async with self._ports:
            await in_thread(partial(self.machine.copy_in, local, remote))

    async def copy_out(self, remote: str, local: Path | str) -> None:
        """Copy a file or a directory of its guest to this host."""
        async with self._ports:
            await in_thread(partial(self.machine.copy_out, remote, local))

    async def remove(self, *, force: bool = False) -> None:
        """Remove it, with its disks and logs; with `force` even while it runs."""
        await in_thread(partial(self.machine.remove, force=force))

    def _fork(self, count: int) -> list[Machine]:
        return list(self.machine.fork(count=count))

    @property
    def _ports(self) -> asyncio.Semaphore:
        """Where more commands than the guest's agent has ports wait, for any time."""
        loop = asyncio.get_running_loop()
        if self._turns is None or self._turns[0] is not loop:
            self._turns = loop, asyncio.Semaphore(AGENT_PORTS)
        return self._turns[1]

    async def _ended(self) -> State:
        with self.machine.changes() as changes:
            while (record := await in_thread(lambda: self.machine.record)).state.live:
                if record.process is not None and record.process.alive():
                    with record.process.pidfd() as descriptor:
                        if descriptor is not None:
                            await _readable(descriptor)
                else:
                    await _changed(changes)
            return record.state


async def _changed(changes: Changes) -> None:
    """Wait for a change, or until it is time to look again."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(_readable(changes.fileno()), _LOOKING)
    changes.wait(0)


class _Command:
    """A command that another thread runs in a guest, and that may have to be killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: GuestProcess | None = None
        self._killed = False

    def started(self, process: GuestProcess) -> None:
        """Take the process that it runs as."""
        with self._lock:
            self._process = process
            killed = self._killed
        if killed:
            _kill(process)

    def kill(self) -> None:
        """End it, or else as soon as it has begun."""
        with self._lock:
            self._killed = True
            process = self._process
        if process is not None:
            _kill(process)


def _kill(process: GuestProcess) -> None:
    # A guest that does not hear of it has gone, or goes.
    with contextlib.suppress(CerneError):
        process.signal(SIGKILL)


async def in_thread(work: Callable[[], _T]) -> _T:
    """Do something in a thread of its own: no number of others keeps it waiting."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(set_: Callable[[], None]) -> None:
        if not done.done():
            set_()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            told = partial(settle, partial(done.set_exception, error))
        else:
            told = partial(settle, partial(done.set_result, result))
        # The loop may have ended with what nobody awaits any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(told)

    threading.Thread(target=run, name="cerne-operation", daemon=True).start()
    return await done


async def _readable(descriptor: int) -> None:
    """Wait until a descriptor can be read."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
