"""Putting right what an interrupted command, an ended process or a restarted host left."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from cerne.engine.base import RunState
from cerne.errors import CerneError, EngineError, HostError, NotAnsweringError, NotFoundError
from cerne.host.members import MACHINE, Members
from cerne.host.process import boot_id
from cerne.manager.lock import held, is_held
from cerne.manager.machines.context import MachineContext, ManagerContext
from cerne.manager.machines.detaching import is_detaching, settle_detached
from cerne.manager.machines.disks import is_replaced, release_disks
from cerne.manager.machines.ending import abandon, discard_saved, ended, forget, kill, not_started
from cerne.manager.machines.notes import tell_notes
from cerne.manager.machines.resources import RESIZING, give_resources, note_memory
from cerne.manager.machines.states import refuse_stopped
from cerne.manager.machines.telling import Untold, added, to_be_told
from cerne.manager.recovery import discard
from cerne.manager.store import Record, State

_log = logging.getLogger(__name__)

WAS_PAUSED = "paused"
"""The reason of a machine that is being saved or stopped, and was paused before."""


def current_record(context: MachineContext) -> Record:
    """What is known of it now; a run that has ended is noticed and recorded.

    Raises:
        NotFoundError: it has been removed.
    """
    context.last = context.store.get(context.id)
    return noticed(context)


def noticed(context: MachineContext) -> Record:
    """The same, for a row that was read just now."""
    tell_notes(context)
    if needs_settling(context.last) and not is_held(context.lock_path):
        # A command that only reads does not wait: a machine that is busy is shown unrepaired.
        with (
            _not_found_alone(),
            held(context.lock_path, "recovery", context.last.name, patience=0),
        ):
            record = context.store.get(context.id)
            context.last = settled(context, record) if needs_settling(record) else record
    return context.last


def sweep_abandoned(manager: ManagerContext) -> None:
    """Remove the machines whose client has ended without removing them."""
    for record in manager.store.bound():
        if record.client is None or record.client.alive():
            continue
        # What another command works on is left to it, or to the next one.
        try:
            _remove_abandoned(MachineContext(manager, record))
        except (CerneError, OSError) as error:
            _log.debug("%s is not removed: %s", record.name, error)


def settled(context: MachineContext, record: Record) -> Record:
    """Put right what an interrupted command, an ended process or a restarted host left."""
    if record.incomplete:
        abandon(context)
        raise NotFoundError(
            f"{record.name} is incomplete: the command that made it was interrupted",
            hint="see: cerne ls",
        )
    if record.process is None:
        return _settled_start(context, record)
    if record.process.alive():
        return _settled_alive(context, record)
    if record.state is State.SAVING and context.saved.exists():
        return ended(context, record, State.SUSPENDED, "")
    if record.process.boot_id != boot_id():
        return ended(context, record, State.STOPPED, "the host was restarted")
    ending = context.manager.choose_engine(record.engine).ending(context.directory)
    return ended(context, record, State.STOPPED if ending.orderly else State.FAILED, ending.reason)


def settled_if_it_answers(context: MachineContext, record: Record) -> Record:
    """Put right what an interrupted command left; its record as it is where it hangs."""
    if not needs_settling(record):
        return record
    try:
        return settled(context, record)
    except NotAnsweringError:
        return record


def observed(context: MachineContext, record: Record, kind: str) -> Record:
    """Record what its process says that it does: it runs, or is paused.

    Raises:
        EngineError: it does not answer.
    """
    instance = context.instance(record)
    if instance.status() is RunState.RUNNING:
        # A guest that was paused, or held while it was saved, is late.
        held_up = record.state in (State.PAUSED, State.SAVING) or record.reason == WAS_PAUSED
        late = held_up and instance.record.agent
        untold = added(record.untold, Untold.TIME) if late else None
        return context.store.change(record, State.RUNNING, kind=kind, untold=untold)
    return context.store.change(record, State.PAUSED, kind=kind)


def needs_settling(record: Record) -> bool:
    if not record.state.live:
        return False
    if record.state in (State.STARTING, State.SAVING, State.STOPPING) or record.process is None:
        return True
    if record.doing:
        return True
    return not record.process.alive()


def _settled_start(context: MachineContext, record: Record) -> Record:
    why = "the command that started it was interrupted"
    found = Members(context.runtime).alive(MACHINE)
    if len(found) == 1 and context.saved.exists() and not is_replaced(context):
        # It may have run on and written to its disk: its memory of before is of no use then.
        with contextlib.suppress(EngineError, HostError):
            engine = context.manager.choose_engine(record.engine)
            instance = engine.attach(engine.describe(context.plan(), found[0]))
            # One that still waits for its memory, or for the word to go on, has not run.
            if instance.status() is not RunState.HELD:
                instance.resume()
                give_resources(context, instance)
                kept = instance.record
                untold = to_be_told(context, record, context.saved, agent=kept.agent)
                record = context.store.set_process(
                    record, found[0], untold, instance=kept.to_json()
                )
                discard(context.saved)
                return record
    not_started(context, record, why)
    return context.store.get(record.id)


def _settled_alive(context: MachineContext, record: Record) -> Record:
    refuse_stopped(record)
    if is_detaching(record):
        return settle_detached(context, record)
    if record.doing == RESIZING:
        return note_memory(context, record, context.instance(record))
    if record.doing or record.state is State.STOPPING:
        return observed(context, record, f"{record.doing or 'stop'} interrupted")
    # What was saved is of no use once it runs on, and all that there is where it never does.
    instance = context.instance(record)
    instance.status()
    discard_saved(context, whole=True)
    instance.break_off_saving()
    if record.reason != WAS_PAUSED:
        instance.resume()
    return observed(context, record, "saving interrupted")


def _remove_abandoned(context: MachineContext) -> None:
    """End and remove it: the client that it is bound to has ended.

    Raises:
        BusyError: an operation works on it.
        NotFoundError: it has been removed.
        EngineError: its process does not end.
    """
    if is_held(context.lock_path):
        return
    with held(context.lock_path, "remove", context.last.name, patience=0.0):
        record = context.store.get(context.id)
        if record.state.live:
            record = kill(context, record, "the process that it was bound to has ended")
        release_disks(context)
        forget(context, record)


@contextlib.contextmanager
def _not_found_alone() -> Iterator[None]:
    """Let through that a machine is gone, and no other failure."""
    try:
        yield
    except NotFoundError:
        raise
    except CerneError as error:
        _log.debug("left as it is: %s", error.message)
