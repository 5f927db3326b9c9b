"""``python -m cerne.vmm CONFIG``: the process of one machine; see also `cerne.vmm.start`.

After a fork of the machine, the child returns to this module and goes on as another machine. All
modules are imported before the process drops its privileges, because its later user may not read
them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable

from cerne import faults
from cerne.arch.x86 import layout
from cerne.devices.state import PlainState
from cerne.errors import CerneError, HostError
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.kvm.vcpu import handle_kicks
from cerne.vmm.commands import commands
from cerne.vmm.config import VmmConfig
from cerne.vmm.descriptors import raise_limit
from cerne.vmm.fork import Forked
from cerne.vmm.jail.calls import VMM_CALLS
from cerne.vmm.jail.system import take_cores_alone
from cerne.vmm.jail.title import Title
from cerne.vmm.jail.walls import Confinement, Walls, enter
from cerne.vmm.machine import Machine
from cerne.vmm.snapshot import read_state, restored_memory

_SWITCH_INTERVAL = 0.0005
"""Seconds; Python's default is ten times as long."""


def main() -> int:
    """Run the machine of a configuration file; return 0 if it ended in order."""
    return end_of(lambda: VmmConfig.read(sys.argv[1]), Title())


def end_of(configure: Callable[[], VmmConfig], title: Title) -> int:
    """Run a machine in this process to its end; return the exit status."""
    try:
        return _live(configure(), title)
    except CerneError as error:
        print(error, file=sys.stderr)
        return 1


def _live(config: VmmConfig, title: Title) -> int:
    handle_kicks()
    raise_limit()
    # A thread that computes holds Python's lock so long after another thread, which serves the
    # guest, asks for it.
    sys.setswitchinterval(_SWITCH_INTERVAL)
    if config.strict:
        _take_cores_alone()
    # Nothing waits for forked children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    kvm = Kvm()
    memory, state = _origin(config)
    machine = Machine(kvm, config, memory, state, title, commands)
    faults.step("assembled")
    walls = enter(Confinement(config.user, VMM_CALLS))
    _report(walls)
    while True:
        machine.walls = walls
        _heed_signals(machine)
        try:
            return 0 if machine.run().orderly else 1
        except Forked as forked:
            # The child has its parent's walls.
            child = forked
        machine = Machine(kvm, child.config, memory, child.state, title, commands)
        faults.step("child assembled")


def _take_cores_alone() -> None:
    try:
        take_cores_alone()
    except OSError as error:
        raise HostError(f"core scheduling failed: {error.strerror}") from error


def _report(walls: Walls) -> None:
    for wall, reason in walls.missing.items():
        print(f"this host lacks {wall}: {reason}", file=sys.stderr, flush=True)


def _heed_signals(machine: Machine) -> None:
    """End in order at a signal, such as at the host's shutdown, so that written data is kept."""
    signal.signal(signal.SIGTERM, lambda number, frame: machine.end_by_signal())


def _origin(config: VmmConfig) -> tuple[GuestMemory, PlainState | None]:
    """The memory and the state with which a machine starts."""
    memory, state = _made(config)
    if config.merge:
        memory.merge()
    return memory, state


def _made(config: VmmConfig) -> tuple[GuestMemory, PlainState | None]:
    saved = config.saved
    if saved is not None:
        state = read_state(saved.state)
        memory = restored_memory(saved.memory, state)
        # The mapping keeps the files open.
        os.close(saved.memory)
        os.close(saved.state)
        return memory, state
    ranges = layout.memory_ranges(config.memory)
    if config.backends or config.hugepages:
        return GuestMemory.shared(ranges, hugepages=config.hugepages), None
    memory = GuestMemory.anonymous(ranges, huge_pages=True)
    start, size = layout.room(config.memory, config.headroom)
    if size:
        # Some hosts count address space as memory: there the machine does not grow.
        with contextlib.suppress(HostError):
            memory.reserve(start, size)
    return memory, None


if __name__ == "__main__":
    sys.exit(main())
