"""Starts passt, which serves a network card with user-mode networking, for both engines."""

from __future__ import annotations

from cerne.engine.detached import listening_socket
from cerne.engine.opened import Opened
from cerne.engine.plan import LaunchPlan, UserNic
from cerne.engine.record import InstanceRecord
from cerne.engine.supervised import backend_socket, room_of, supervised
from cerne.engine.supervisor import LINK, READY
from cerne.host.programs import require_program
from cerne.network.passt import passt_command
from cerne.vmm.config import NicConfig
from cerne.vmm.jail.calls import CONFINING_PROGRAM_CALLS
from cerne.vmm.jail.program import FIRST_FREE_PORT, NET_BIND_SERVICE


def network_backend(
    machine: LaunchPlan | InstanceRecord, nic: UserNic, opened: Opened
) -> NicConfig:
    """Start passt for a network card on a socket; `opened` has passt's report.

    Raises:
        EngineError: starting it failed.
    """
    name = _network_name(nic)
    program = require_program("passt")
    command = passt_command(program, LINK, READY, nic.forwards)
    room = room_of(program, CONFINING_PROGRAM_CALLS, network=True)
    if any(forward.host_port < FIRST_FREE_PORT for forward in nic.forwards):
        room.capabilities.append(NET_BIND_SERVICE)
    what = f"passt, which serves {name} of {machine.name},"
    with listening_socket(backend_socket(machine, name)) as listener, opened.report(what) as report:
        backend = supervised(
            machine, name, what, listener, opened, room, command, report=report, tied=False
        )
    return NicConfig(
        nic.mac, backend.link, slot=nic.slot, address=backend.address, leash=backend.leash
    )


def _network_name(nic: UserNic) -> str:
    return f"net{0 if nic.slot is None else nic.slot + 1}"
