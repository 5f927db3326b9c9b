"""The walls around the processes of a machine that runs."""

from __future__ import annotations

from cerne.host.members import MACHINE, SAVER, Members
from cerne.host.process_walls import ProcessWalls, walls_of
from cerne.manager.machines.context import MachineContext

_SUPERVISOR = "-supervisor"


def walls(context: MachineContext) -> list[ProcessWalls]:
    """Its processes with the walls around each, its main process first."""
    logs = context.directory
    found = []
    for member in Members(context.runtime).all():
        if member.process is None or not member.alive:
            continue
        own = member.role not in (MACHINE, SAVER)
        log = logs / f"{member.role.removesuffix(_SUPERVISOR)}.log" if own else logs / "engine.log"
        seen = walls_of(member.role, member.process.pid, log)
        if seen is not None:
            found.append(seen)
    return sorted(found, key=lambda process: (process.role != MACHINE, process.role))
