"""What is noted of the processes that serve a machine while it runs."""

from __future__ import annotations

from cerne.host.members import Members
from cerne.host.notes import Notes
from cerne.manager.machines.context import MachineContext

HELPER_ENDED = "helper ended"
"""The kind of the event that a process which serves a machine has ended."""


def unserved(context: MachineContext) -> list[str]:
    """The devices whose process has ended and is not started again, while it runs."""
    if not _runs(context):
        return []
    return sorted({member.role for member in Members(context.runtime).lost()})


def tell_notes(context: MachineContext) -> None:
    """Make events of what was noted of the processes that serve it."""
    if not _runs(context):
        return
    with Notes(context.runtime).taken() as notes:
        for words in notes:
            context.store.tell(context.last, HELPER_ENDED, words)
    for member in Members(context.runtime).lost():
        if not member.noted:
            words = f"the process that serves {member.role} has ended, and is not restarted"
            context.store.tell(context.last, HELPER_ENDED, words)
            member.note()


def _runs(context: MachineContext) -> bool:
    process = context.last.process
    return context.last.state.live and process is not None and process.alive()
