"""What QEMU needs of its host, for the walls around it (`cerne.vmm.jail.program`).

As root, QEMU runs with a user id of its own in a root that has only the machine's files. With
mounted directories it keeps root's id, because files in them belong to any user, and their modes
and owners are promised to the guest; it sees no other files even so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cerne.engine.detached import START
from cerne.engine.opened import Opened
from cerne.engine.plan import KernelBoot, LaunchPlan
from cerne.engine.qemu.command_line import PID_FILE
from cerne.engine.qemu.console_log import limited_log
from cerne.engine.qemu.user_cards import has_own_user_mode
from cerne.engine.saved import MEMORY_FILE
from cerne.errors import DamagedError
from cerne.host import user_ids
from cerne.storage.overlay import chain
from cerne.vmm.jail.bpf import ALLOW, opening, program
from cerne.vmm.jail.calls import PROGRAM_CALLS
from cerne.vmm.jail.program import (
    FILE_CAPABILITIES,
    FIRST_FREE_PORT,
    NET_BIND_SERVICE,
    SYSTEM,
    Mapped,
    Room,
)
from cerne.vmm.jail.system import MOST_THREADS

_FORMATS = frozenset(("raw", "qcow2", "vdi", "vhdx", "vpc"))
"""Disks of other formats may have parts in files that only QEMU finds."""
_MOST_THREADS = 1024
"""Of a user id of its own: a thread for each vCPU, and less than a hundred others."""


def confined(
    argv: list[str], plan: LaunchPlan, opened: Opened, *, reads_memory: bool = False
) -> list[str]:
    """The command line that confines QEMU and executes it; `opened` gets its user id's lease.

    Older QEMUs open the file of saved memory to write, and get it only to read.
    """
    known = Path(argv[0]).resolve().is_relative_to(SYSTEM)
    known = known and all(disk.format in _FORMATS for disk in plan.disks)
    lease = user_ids.take() if known and not plan.shares else None
    if lease is not None:
        opened.take(lease.descriptor)
    own_network = has_own_user_mode(plan)
    memory = _saved_memory(plan)
    room = Room(
        own_root=known,
        user=None if lease is None else lease.user,
        reads=[str(path) for path in _reads(plan, reads_memory)] if known else [],
        writes=[str(path) for path in _writes(plan)] if known else [],
        network=own_network,
        # QEMU reserves no memory for what may be plugged, and asks first whether the host allows
        # that (/proc/sys/vm/overcommit_memory).
        settings=bool(plan.headroom),
        capabilities=_capabilities(plan, None if lease is None else lease.user, own_network),
        threads=MOST_THREADS if lease is None else _MOST_THREADS,
        own_cores=plan.strict,
        log=limited_log(plan, opened),
        mapped=None if memory is None or reads_memory else Mapped(str(memory), opening()),
        filter=program(PROGRAM_CALLS, ALLOW),
    )
    return [*START, "program", *room.words(), *argv]


def _reads(plan: LaunchPlan, reads_memory: bool) -> Iterator[Path]:
    if reads_memory and (memory := _saved_memory(plan)) is not None:
        yield memory
    if isinstance(plan.boot, KernelBoot):
        yield plan.boot.kernel
        if plan.boot.initrd is not None:
            yield plan.boot.initrd
    for disk in plan.disks:
        # The first is inherited. QEMU itself says what is wrong with a disk.
        with contextlib.suppress(DamagedError):
            yield from [path for path, _ in chain(disk.path, disk.format)[1:]]
    for share in plan.shares:
        if share.read_only:
            yield share.source


def _saved_memory(plan: LaunchPlan) -> Path | None:
    memory = None if plan.saved is None else plan.saved / MEMORY_FILE
    return memory if memory is not None and memory.exists() else None


def _writes(plan: LaunchPlan) -> Iterator[Path]:
    yield (plan.logs / PID_FILE).parent
    yield plan.console_log
    if plan.saved is None and plan.memory_file is not None:
        plan.memory_file.touch(mode=0o600)
        yield plan.memory_file
    for share in plan.shares:
        if not share.read_only:
            yield share.source


def _capabilities(plan: LaunchPlan, user: int | None, own_network: bool) -> Iterator[int]:
    if user is None and os.geteuid() == 0:
        yield from FILE_CAPABILITIES
    low = any(forward.host_port < FIRST_FREE_PORT for forward in plan.forwards)
    if low and own_network:
        yield NET_BIND_SERVICE
