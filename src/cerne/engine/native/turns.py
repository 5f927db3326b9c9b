"""Divides the children of a fork into turns, because each child needs open files.

The files of each child are opened here and sent to the VMM, for all children of a turn at once.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path

from cerne.engine.plan import DiskPlan, LaunchPlan
from cerne.errors import EngineError
from cerne.host.cell_note import CellNote
from cerne.storage.overlay import chain
from cerne.units import counted
from cerne.vmm.descriptors import DESCRIPTORS_AT_ONCE

MOST_AT_ONCE = 16
"""The most children of one turn; the source's VMM answers nothing else during a turn."""
# Kernel, initrd, control socket, console and its log, the ending, the log, the registration, saved
# state and memory, and the directory and the socket of vsock.
_OF_EVERY_CHILD = 12
# A link and vhost-net; or a link and the report of passt's start.
_OF_A_NIC = 2
# Other files that this process opens meanwhile: the connection, and files of other threads.
_RESERVE = 32


def turns(
    disks: Sequence[DiskPlan], children: Sequence[LaunchPlan], room: int | None = None
) -> list[list[LaunchPlan]]:
    """The children in turns; each turn sends `disks`, and `room` is the number of free files.

    Raises:
        EngineError: there is no room for one child.
    """
    if room is None:
        room = descriptors_left()
    own = of_disks(disks)
    # A single child may need several messages.
    most = min(DESCRIPTORS_AT_ONCE, room)
    found: list[list[LaunchPlan]] = []
    taken = 0
    for child in children:
        needed = _of_machine(child)
        if own + needed > room:
            raise EngineError(
                f"forking {child.name} needs {counted(own + needed, 'open file')}, and this"
                " process "
                f"may open {max(room, 0)} more",
                hint="raise the limit: ulimit -n 4096",
            )
        if found and len(found[-1]) < MOST_AT_ONCE and taken + needed <= most:
            found[-1].append(child)
            taken += needed
        else:
            found.append([child])
            taken = own + needed
    return found


def descriptors_left() -> int:
    """How many more files this process may open."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return allowed - len(list(Path("/proc/self/fd").iterdir())) - _RESERVE


def of_disks(disks: Sequence[DiskPlan]) -> int:
    """The number of files of disks, with the layers under each."""
    return sum(len(chain(disk.path, disk.format)) for disk in disks)


def _of_machine(plan: LaunchPlan) -> int:
    note = CellNote.read(plan.control_group)
    doors = 0 if note is None else len(note.doors)
    fixed = _OF_EVERY_CHILD + doors + len(plan.agent_sockets) + len(plan.shares)
    return fixed + _OF_A_NIC * len(plan.nics) + of_disks(plan.disks)
