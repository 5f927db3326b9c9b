"""Waiting for a guest to be ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CerneError, GuestError, GuestTimeoutError, StateError
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.ending import kill
from cerne.manager.machines.operation import operation
from cerne.manager.machines.telling import tell
from cerne.manager.machines.watch import ended_before_ready, last_lines
from cerne.manager.store import State

if TYPE_CHECKING:
    from cerne.images import Progress

_ENDING_TIMEOUT = 2.0


def await_ready(context: MachineContext, timeout: float, progress: Progress | None = None) -> None:
    """Wait until a guest that boots is ready, or else kill its machine.

    A machine that was paused meanwhile is not killed.

    Raises:
        EngineError, GuestError: it ended or did not become ready.
        StateError: it was paused.
    """
    try:
        tell(context, timeout, progress)
    except StateError:
        raise
    except BaseException as error:
        failure = _failed_to_become_ready(context, error, timeout)
        if failure is error:
            raise
        raise failure from error


def introduce(context: MachineContext) -> None:
    """Tell a guest that was forked who it is now; from then on its machine is whole.

    Raises:
        GuestError: it does not answer, or the request failed.
    """
    process = context.last.process
    assert process is not None
    instance = context.instance()
    if instance.record.agent:
        # The guest answers at once: it was ready when it was saved.
        from cerne.manager.machines.addresses import configure_cards
        from cerne.manager.machines.identity import HOOKS_TIMEOUT, renew

        agent = instance.agent()
        renew(context, agent, restored=True, timeout=HOOKS_TIMEOUT)
        faults.step("renewed")
        configure_cards(context, agent, restored=True)
    else:
        from cerne.manager.machines.identity import warn_without_agent

        warn_without_agent(context)
    context.last = context.store.set_process(context.last, process)
    if instance.record.agent:
        context.last = context.store.set_ready(context.last)


def _failed_to_become_ready(
    context: MachineContext, error: BaseException, timeout: float
) -> BaseException:
    """Kill a machine that did not become ready; the error that says why."""
    name = context.last.name
    if type(error) is GuestError and context.last.process is not None:
        # The connection broke: the process is most likely ending, and will have said why.
        context.last.process.wait(_ENDING_TIMEOUT)
    with operation(context, "kill") as record:
        if not record.state.live:
            return ended_before_ready(record.name, record.reason, context.console_log)
        if record.state is not State.RUNNING or not record.untold:
            # Others have paused, saved or told it meanwhile: it is theirs now.
            return error
        why = error.message if isinstance(error, CerneError) else "its start was interrupted"
        context.last = kill(context, record, why, State.FAILED)
    if not isinstance(error, GuestTimeoutError):
        return error
    said = last_lines(context.console_log)
    end = f"; its console ended with: {said[-1]}" if said else "; its console said nothing"
    return GuestTimeoutError(
        f"{name} was not ready after {timeout:g} s{end}",
        hint=f"its console log is {context.console_log}; --timeout gives it longer",
        machine=name,
    )
