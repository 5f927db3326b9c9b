"""What a guest's init says of its boot: systemd reports it, and other guests have booted already.

A machine is ready when its agent answers and, with systemd, the boot target is reached
(systemctl(1), ``is-system-running``).
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cerne.errors import CerneError, GuestError, GuestTimeoutError
from cerne.manager.machines.context import MachineContext
from cerne.manager.store import State

if TYPE_CHECKING:
    from cerne.guest import GuestAgent

_log = logging.getLogger(__name__)

_ASKING = ("systemctl", "is-system-running")
_SAID = re.compile(r"[a-z-]{1,32}")
_LOOKING_LIMIT = 2.0
"""Seconds that a guest has to tell its state to those who only look."""
_WAITING_LIMIT = 5.0
"""Seconds of one wait, between which the machine itself is looked at."""
_NOT_REACHED = ("starting", "initializing", "offline", "unknown", "")
_PAUSE = 0.2


def await_boot_target(
    agent: GuestAgent, name: str, timeout: float, goes_on: Callable[[], bool]
) -> None:
    """Wait until systemd has reached the boot target of the guest of a machine of this name.

    A failed unit, or an emergency, is the end of a boot too, and is only reported.

    Raises:
        GuestTimeoutError: it has not in `timeout` seconds.
        GuestError: the guest is gone.
    """
    deadline = time.monotonic() + timeout
    while (said := _state_after_boot(agent, deadline)) in _NOT_REACHED:
        if not goes_on():
            raise GuestError(f"{name} ended before its boot target was reached")
        if time.monotonic() >= deadline:
            raise GuestTimeoutError(
                f"the guest was not ready after {timeout:g} s: systemd is {said or 'silent'}"
            )
        time.sleep(_PAUSE)
    if said != "running":
        _log.warning(
            "systemd in %s reports %s; see: cerne exec %s -- systemctl --failed", name, said, name
        )


def system_state(agent: GuestAgent) -> str:
    """What ``systemctl is-system-running`` prints; empty if it prints no state in time.

    Raises:
        GuestError: the guest is gone.
    """
    return _said(agent, _ASKING, _LOOKING_LIMIT)


def reported_state(context: MachineContext) -> str:
    """What systemd in a machine's guest reports; empty if there is none to ask, or it is silent."""
    record = context.last
    if record.state is not State.RUNNING or record.ready is None or record.untold:
        return ""
    # The guest may end meanwhile, and a damaged row or image is for others to report.
    with contextlib.suppress(CerneError):
        instance = context.instance(record)
        if instance.record.agent and context.image().has_systemd:
            return system_state(instance.agent())
    return ""


def _state_after_boot(agent: GuestAgent, deadline: float) -> str:
    limit = min(_WAITING_LIMIT, deadline - time.monotonic())
    return _said(agent, (*_ASKING, "--wait"), max(_PAUSE, limit))


def _said(agent: GuestAgent, command: Sequence[str], timeout: float) -> str:
    try:
        done = agent.run(command, timeout=timeout, answer_timeout=max(timeout, _LOOKING_LIMIT))
    except GuestTimeoutError:
        return ""
    said = done.stdout.decode(errors="replace").strip()
    return said if _SAID.fullmatch(said) else ""
