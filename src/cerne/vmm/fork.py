"""Forks and saves a running machine by fork(2): the child has the memory of that moment.

The machine is paused while its state is read and the process forks. The host's kernel makes the
memory copy-on-write on both sides, and the machine goes on. The child, or another thread than the
loop's, does the long work: a forked machine makes a new KVM VM over the memory (a VM belongs to the
process that made it), and a saved machine is written to its files.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import time
from typing import IO, TYPE_CHECKING, NoReturn

from cerne import faults
from cerne.devices.state import PlainState, SavedState
from cerne.errors import CerneError, DamagedError, EngineError
from cerne.vmm.config import VmmConfig, disks_from_json
from cerne.vmm.descriptors import LARGEST_LIMIT
from cerne.vmm.qmp import Later
from cerne.vmm.registration import enter, register
from cerne.vmm.snapshot import write_memory, write_state

if TYPE_CHECKING:
    from cerne.devices.block.disk import Disk
    from cerne.vmm.machine import Machine
    from cerne.vmm.qmp import Request

_MOST_CHILDREN = 256
_CHILD_TIMEOUT = 30.0
_FIRST_FREE_DESCRIPTOR = 3


class Forked(BaseException):
    """Unwinds the stack in a forked child, which then goes on as another machine."""

    def __init__(self, config: VmmConfig, state: PlainState) -> None:
        super().__init__(config.name)
        self.config = config
        self.state = state


def save(machine: Machine, request: Request) -> object:
    """``cerne-save``: write state and memory to files; with ``disks`` go on as in `fork`.

    ``state`` and ``memory`` are descriptors of empty files; the process that writes them registers
    itself in ``registration``. ``report`` is a pipe for the result: ``digest`` (of the memory) or
    ``error``. Answers with the length of the ``pause`` in nanoseconds, and the bytes of ``memory``
    that the machine has or should have. The machine goes on meanwhile, if it ran and ``resume`` is
    true.
    """
    _require_own_memory(machine)
    arguments = request.arguments
    registration, *files = (
        request.descriptor(arguments.integer(name, 1 << 12))
        for name in ("registration", "state", "memory", "report")
    )
    resume = arguments.flag("resume")
    disks = request.take_over(disks_from_json)
    began = time.monotonic_ns()
    with machine.paused(resume=resume):
        state = machine.state()
        faults.step("state read")
        if _fork() == 0:
            register(registration)
            _write(machine, state, *files)
        faults.step("saver forked")
        former = machine.peripherals.switch_disks(disks) if disks else []
    pause = time.monotonic_ns() - began
    memory = machine.memory.fixed_size + machine.peripherals.memory_plug.device.requested

    def finish() -> object:
        _close(former)
        return {"pause": pause, "memory": memory}

    return Later(finish)


def _require_own_memory(machine: Machine) -> None:
    """Refuse a machine that shares its memory with backends: a child would share it too.

    The state of the backends is in other processes, so it is not saved either.
    """
    if machine.config.hugepages:
        raise EngineError("the machine's memory is in hugepages, which are not copied")
    if machine.config.backends:
        raise EngineError("other processes serve devices of the machine, and share its memory")


def fork(machine: Machine, request: Request) -> object:
    """``cerne-fork``: fork a machine for each of ``children``, configurations with descriptors.

    The machine goes on with ``disks``, which are overlays of its former disks. Answers with the
    children's ``pids``, and the length of the ``pause`` in nanoseconds.
    """
    _require_own_memory(machine)
    children = request.arguments.sections("children", None)
    if not 1 <= len(children) <= _MOST_CHILDREN:
        raise DamagedError(f"one request forks 1 to {_MOST_CHILDREN} machines")
    lease = machine.config.lease
    # The children have their parent's user id.
    configs = [
        VmmConfig.from_saved(child, request.descriptor)._replace(
            user=machine.config.user, lease=lease
        )
        for child in children
    ]
    disks = request.take_over(disks_from_json)
    reading, writing = os.pipe()
    began = time.monotonic_ns()
    with contextlib.ExitStack() as leaving:
        report = leaving.enter_context(os.fdopen(reading, "rb"))
        with os.fdopen(writing, "wb") as said, machine.paused():
            state = machine.state()
            faults.step("state read")
            if _fork() == 0:
                _become(machine, configs, state, said.fileno(), report.fileno())
            faults.step("child forked")
            former = machine.peripherals.switch_disks(disks)
        faults.step("parent runs")
        leaving.pop_all()
    pause = time.monotonic_ns() - began

    def finish() -> object:
        with report:
            try:
                pids = _pids(report, len(configs))
            finally:
                # Afterwards, because to count clusters keeps the disk's thread waiting.
                _close(former)
            return {"pids": pids, "pause": pause}

    return Later(finish)


def _close(disks: list[Disk]) -> None:
    """Close the former disks of a machine, after their tables are written."""
    for disk in disks:
        disk.close()


def _fork() -> int:
    # Python's garbage collector would write to pages of the child, which the kernel then copies.
    gc.freeze()
    try:
        return os.fork()
    except OSError as error:
        raise EngineError(f"the host does not fork the machine: {error.strerror}") from error


def _become(
    machine: Machine, configs: list[VmmConfig], state: PlainState, report: int, other_end: int
) -> NoReturn:
    """In the first child: fork the others, and unwind the stack as one of the machines."""
    config = registered(configs[0])
    machine.title.set(config.identity)
    faults.step("in the child")
    # The parent does not wait for them, because this child has the memory of that moment too.
    index = 0
    try:
        for other in range(1, len(configs)):
            if os.fork() == 0:
                index = other
                config = registered(configs[index])
                machine.title.set(config.identity)
                break
    except OSError as error:
        _say(report, {"error": f"the host does not fork the machine: {error.strerror}"})
        os._exit(1)
    _say(report, {"child": index, "pid": os.getpid()})
    os.setsid()
    config = with_log_of_its_own(config)
    # The unwinding closes the pipe.
    _keep_only(machine, config.descriptors | {report, other_end})
    faults.step("child apart")
    raise Forked(config, state)


def registered(config: VmmConfig) -> VmmConfig:
    """Register a forked child for the machine, and enter its cell, before its other work."""
    if config.registration is None:
        return config
    register(config.registration)
    enter(config.doors)
    return config._replace(registration=None, doors=())


def with_log_of_its_own(config: VmmConfig) -> VmmConfig:
    """Redirect a forked child's output to its own log."""
    if config.engine_log is None:
        return config
    for standard in (1, 2):
        os.dup2(config.engine_log, standard)
    os.close(config.engine_log)
    return config._replace(engine_log=None)


def _write(
    machine: Machine, state: PlainState, state_file: int, memory_file: int, report: int
) -> NoReturn:
    """In a child: write a machine to files, and end."""
    try:
        lease = machine.config.lease
        _keep_only(machine, {state_file, memory_file, report, *([] if lease is None else [lease])})
        faults.step("in the saver")
        digest = write_memory(memory_file, machine.memory)
        faults.step("memory written")
        write_state(state_file, state)
        faults.step("state written")
        _say(report, {"digest": digest})
    except CerneError as error:
        _say(report, {"error": error.message})
    finally:
        os._exit(0)


def _keep_only(machine: Machine, kept: set[int]) -> None:
    """Close all other descriptors of the parent, so that this process does not hold them."""
    machine.abandon()
    first = _FIRST_FREE_DESCRIPTOR
    for descriptor in sorted(kept | {machine.kvm.fileno()}):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, LARGEST_LIMIT)


def _say(report: int, outcome: PlainState) -> None:
    os.write(report, json.dumps(outcome).encode() + b"\n")


def _pids(report: IO[bytes], count: int) -> list[int]:
    """The children's pids, in their order; if one is missing, the caller has to end the others."""
    said = [SavedState("a child", json.loads(line)) for line in _all_of(report).splitlines()]
    pids = {
        child.integer("child", count - 1): child.integer("pid", 1 << 22)
        for child in said
        if "pid" in child
    }
    if len(pids) == count:
        return [pids[index] for index in range(count)]
    reasons = [child.text("error", 1024) for child in said if "error" in child]
    raise EngineError(f"only {len(pids)} of {count} were forked: {'; '.join(reasons)}")


def _all_of(report: IO[bytes]) -> bytes:
    """All that the children write until each has closed its end."""
    data = b""
    coming = select.poll()
    coming.register(report, select.POLLIN)
    while coming.poll(_CHILD_TIMEOUT * 1000):
        piece = os.read(report.fileno(), 65536)
        if not piece:
            break
        data += piece
    return data
