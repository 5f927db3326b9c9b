"""In what turns a machine is forked many times: as many children at once as there is room for.

What each child is given is opened here and sent to the VMM, all of a turn at once.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

from cerne.engine.plan import DiskPlan, LaunchPlan
from cerne.errors import EngineError
from cerne.storage.overlay import chain
from cerne.vmm.descriptors import DESCRIPTORS_AT_ONCE

MOST_AT_ONCE = 16
"""Children of one turn, of which each takes time in which the source's VMM answers nothing else."""
# Kernel, initrd, control socket, console and its log, the ending, the log, the registration, saved
# state and memory, and the directory and the socket of vsock.
_OF_EVERY_CHILD = 12
# A link and vhost-net; or a link, its address, its leash, and the report of passt's start.
_OF_A_NIC = 4
# What else this process opens meanwhile: the connection, other threads of a library's user.
_RESERVE = 32


def turns(
    disks: Sequence[DiskPlan], children: Sequence[LaunchPlan], room: int | None = None
) -> list[list[LaunchPlan]]:
    """The children, in turns; `disks` are sent with each, and `room` is what may be opened.

    Raises:
        EngineError: there is no room for one child.
    """
    if room is None:
        room = descriptors_left()
    own = of_disks(disks)
    # One child alone may need several messages.
    most = min(DESCRIPTORS_AT_ONCE, room)
    found: list[list[LaunchPlan]] = []
    taken = 0
    for child in children:
        needed = _of_machine(child)
        if own + needed > room:
            raise EngineError(
                f"to fork {child.name} takes {own + needed} open files at once, and this process "
                f"may open {max(room, 0)} more",
                hint="raise the limit, as by: ulimit -n 4096",
            )
        if found and len(found[-1]) < MOST_AT_ONCE and taken + needed <= most:
            found[-1].append(child)
            taken += needed
        else:
            found.append([child])
            taken = own + needed
    return found


def descriptors_left() -> int:
    """How many files this process may open beside those that it has open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return allowed - len(list(Path("/proc/self/fd").iterdir())) - _RESERVE


def of_disks(disks: Sequence[DiskPlan]) -> int:
    """How many files disks are, with all that is under each."""
    return sum(len(chain(disk.path, disk.format)) for disk in disks)


def _of_machine(plan: LaunchPlan) -> int:
    fixed = _OF_EVERY_CHILD + len(plan.agent_sockets) + len(plan.shares)
    return fixed + _OF_A_NIC * len(plan.nics) + of_disks(plan.disks)
