"""The library's shortest way to a machine: ``with cerne.run("tiny") as vm: vm.exec(["true"])``."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ParamSpec, Unpack

from cerne.client.block import AsyncBlock, Block
from cerne.client.local import LocalHost
from cerne.errors import CerneError
from cerne.spec.machine import machine_spec
from cerne.units import parse_duration

if TYPE_CHECKING:
    from cerne.images import Progress
    from cerne.manager.asynchronous import AsyncMachine
    from cerne.manager.machines.machine import Machine
    from cerne.spec.asked import MachineFields


P = ParamSpec("P")


def _for_a_block(function: Callable[P, Iterator[Machine]]) -> Callable[P, Block[Machine]]:
    manager = contextlib.contextmanager(function)

    @functools.wraps(function)
    def block(*args: P.args, **kwargs: P.kwargs) -> Block[Machine]:
        return Block(manager(*args, **kwargs))

    return block


@_for_a_block
def run(
    image: str = "tiny",
    *,
    name: str | None = None,
    timeout: float | str | None = None,
    progress: Progress | None = None,
    **fields: Unpack[MachineFields],
) -> Iterator[Machine]:
    """A machine that runs, its guest ready, for the length of a ``with`` block.

    It is bound to this process: where that is killed in the block the machine is removed too.

    Args:
        image: an image's name, such as ``tiny`` or ``debian:12``; made or fetched if need be.
        name: the machine's name; one is made up if not given.
        timeout: how long its guest may take to become ready, in seconds or as ``90s``.
        progress: told what is being made or fetched.
        fields: what the machine is to be, as the options of ``cerne run``: see `MachineFields`.

    Raises:
        CerneError: making it failed, or it did not become ready; nothing of it is left.
    """
    with LocalHost() as host:
        spec = machine_spec(name=name or host.free_name(), image=image, **fields)
        limit = None if timeout is None else parse_duration(timeout)
        with host.running(spec, timeout=limit, progress=progress) as machine:
            yield machine


def _asynchronous(
    function: Callable[P, AbstractContextManager[Machine]],
) -> Callable[P, AsyncBlock[AsyncMachine]]:
    @contextlib.asynccontextmanager
    async def entered_in_a_thread(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[AsyncMachine]:
        import asyncio

        from cerne.manager.asynchronous import AsyncMachine, in_thread

        context = function(*args, **kwargs)
        entering = asyncio.ensure_future(in_thread(context.__enter__))
        try:
            machine = await asyncio.shield(entering)
        except asyncio.CancelledError:
            # The thread makes the machine all the same; it is removed as soon as it is whole.
            with contextlib.suppress(CerneError):
                await entering
                await in_thread(lambda: context.__exit__(None, None, None))
            raise
        try:
            yield AsyncMachine(machine)
        finally:
            failure = sys.exc_info()
            await in_thread(lambda: context.__exit__(*failure))

    @functools.wraps(function)
    def block(*args: P.args, **kwargs: P.kwargs) -> AsyncBlock[AsyncMachine]:
        return AsyncBlock(entered_in_a_thread(*args, **kwargs))

    return block


run_async = _asynchronous(run)
"""`run` for asyncio, as ``async with``: an `AsyncMachine`, whose methods are awaited."""
