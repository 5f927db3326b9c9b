"""The library's shortest way to a machine: ``with cerne.run("tiny") as vm: vm.exec(["true"])``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from cerne.manager.manager import Manager
from cerne.spec.disk import Disk
from cerne.spec.machine import machine_spec
from cerne.spec.mount import Mount
from cerne.spec.ports import PublishedPort
from cerne.units import parse_duration

if TYPE_CHECKING:
    from cerne.images import Progress
    from cerne.manager.machine import Machine


P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def run(
    image: str = "tiny",
    *,
    name: str | None = None,
    cpus: int = 1,
    memory: int | str = "512M",
    disk: int | str | None = None,
    data_disks: Sequence[Disk | str] = (),
    network: str = "user",
    ports: Sequence[PublishedPort | str] = (),
    mounts: Sequence[Mount | str] = (),
    labels: Mapping[str, str] | None = None,
    engine: Literal["auto", "native", "qemu"] = "auto",
    cpu_weight: int | None = None,
    timeout: float | str | None = None,
    progress: Progress | None = None,
) -> Iterator[Machine]:
    """A machine that runs, its guest ready, for the length of a ``with`` block.

    It is bound to this process: where that is killed in the block the machine is removed too.

    Args:
        image: an image's name, such as ``tiny`` or ``debian:12``; made or fetched if need be.
        name: the machine's name; one is made up if not given.
        cpus: virtual CPUs.
        memory: guest memory, in bytes or as ``512M``.
        disk: size of the root disk, in bytes or as ``20G``; the image's own if not given.
        data_disks: other disks: sizes, for new and empty ones, or paths of files, as
            ``SIZE|PATH[:ro][:format=raw]``.
        network: ``user``, ``none``, or ``tap:INTERFACE`` for a tap of this host.
        ports: published ports, such as ``8080:80``.
        mounts: directories of this host, as ``SOURCE:TARGET[:ro]``.
        labels: free words for those who list machines.
        engine: which engine runs it; ``auto`` takes the quicker one for this host.
        cpu_weight: its share of CPU time beside others, 1 to 10000, where 100 is everybody's.
        timeout: how long its guest may take to become ready, in seconds or as ``90s``.
        progress: told what is being made or fetched.

    Raises:
        CerneError: it cannot be made, or did not become ready; nothing of it is left.
    """
    with Manager() as manager:
        spec = machine_spec(
            name=name or manager.free_name(),
            image=image,
            cpus=cpus,
            memory=memory,
            disk=disk,
            data_disks=tuple(data_disks),
            network=network,
            ports=tuple(ports),
            mounts=tuple(mounts),
            labels=dict(labels or {}),
            engine=engine,
            cpu_weight=cpu_weight,
        )
        limit = None if timeout is None else parse_duration(timeout)
        with manager.running(spec, timeout=limit, progress=progress) as machine:
            yield machine


def _asynchronous(
    function: Callable[P, AbstractContextManager[T]],
) -> Callable[P, AbstractAsyncContextManager[T]]:
    @contextlib.asynccontextmanager
    async def entered_in_a_thread(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        import asyncio

        context = function(*args, **kwargs)
        entered = await asyncio.to_thread(context.__enter__)
        try:
            yield entered
        finally:
            await asyncio.to_thread(context.__exit__, *sys.exc_info())

    return entered_in_a_thread


run_async = _asynchronous(run)
"""`run` for asyncio, as ``async with``: the event loop goes on while a machine starts and ends.

A machine's own methods go well with `asyncio.to_thread`.
"""
