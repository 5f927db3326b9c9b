"""A machine while its memory is being saved, or forked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cerne import faults
from cerne.errors import CerneError
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.ending import discard_saved
from cerne.manager.machines.recovery import WAS_PAUSED, settled
from cerne.manager.recovery import discard
from cerne.manager.store import Record, State


@contextlib.contextmanager
def saving(
    context: MachineContext, record: Record, directory: Path, done: str = "saved"
) -> Iterator[None]:
    """Its engine saves it to this new directory, or forks it, in this block.

    Afterwards it is as it was before, and `done` is the event. A command that is killed in
    the block is noticed by the next one, which lets the guest run on if it ran.
    """
    # What a command left that was killed after it had woken the machine.
    discard_saved(context, whole=True)
    was_paused = record.state is State.PAUSED
    reason = WAS_PAUSED if was_paused else ""
    context.last = context.store.change(record, State.SAVING, reason=reason)
    faults.step("saving")
    try:
        directory.mkdir(mode=0o700)
        yield
    except BaseException:
        # First of all: if the disk is full, the store too waits for this.
        discard(directory)
        # The next operation puts right what fails here.
        with contextlib.suppress(CerneError):
            context.last = settled(context, context.last)
        raise
    if context.last.state is State.SAVING:
        state = State.PAUSED if was_paused else State.RUNNING
        context.last = context.store.change(context.last, state, kind=done)
