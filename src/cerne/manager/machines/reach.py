"""Ways into a guest that runs: its agent, its console, its sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from cerne.errors import GuestError, HostError
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.recovery import current_record
from cerne.manager.machines.states import require_state
from cerne.manager.machines.telling import tell
from cerne.manager.store import State

if TYPE_CHECKING:
    from cerne.engine.base import Vsock
    from cerne.guest import GuestAgent


def agent(context: MachineContext) -> GuestAgent:
    """Its guest's agent (see `Machine.agent`)."""
    record = current_record(context)
    require_state(record, State.RUNNING)
    tell(context)
    instance = context.instance()
    if record.ready is None and not instance.record.agent:
        raise GuestError(
            f"the image of {record.name} contains no agent",
            hint=f"use its console: cerne console {record.name}",
            machine=record.name,
        )
    return instance.agent()


def console(context: MachineContext) -> socket.socket:
    """A connection to its serial console (see `Machine.console`)."""
    require_state(current_record(context), State.RUNNING, State.PAUSED)
    return context.instance().console()


def vsock(context: MachineContext) -> Vsock | None:
    """The way to its guest's sockets; None where it does not run, or has none."""
    record = current_record(context)
    if record.state not in (State.RUNNING, State.PAUSED):
        return None
    return context.instance().vsock()


def require_vsock(context: MachineContext) -> Vsock:
    """The way to its guest's sockets.

    Raises:
        StateError: it does not run, or is paused.
        HostError: it has no such sockets on this host.
    """
    require_state(current_record(context), State.RUNNING)
    way = context.instance().vsock()
    if way is None:
        name = context.last.name
        raise HostError(
            f"{name} has no vsock: this host has no vhost-vsock for QEMU, or you may not use it",
            hint="modprobe vhost_vsock, and restart the machine; or use --engine native",
            machine=name,
        )
    return way
