"""Starts passt, which serves a network card with user-mode networking, for both engines."""

from __future__ import annotations

from pathlib import Path

from cerne.engine.opened import Opened
from cerne.engine.plan import LaunchPlan, UserNic
from cerne.engine.record import InstanceRecord
from cerne.engine.supervised import room_of, start_supervisor
from cerne.engine.supervisor import LINK, READY, CardTask, Task
from cerne.host.programs import require_program
from cerne.network.passt import PASST, has_passt, passt_command, require_ipv6, require_one_address
from cerne.network.user import RESOLVER_DIRECTORY
from cerne.units import MIB
from cerne.vmm.jail.calls import CONFINING_PROGRAM_CALLS
from cerne.vmm.jail.program import FIRST_FREE_PORT, NET_BIND_SERVICE

_LARGEST_FILE = 4 * MIB
"""It writes its log alone, and its supervisor the notes and the registration."""


def require_card_programs(plan: LaunchPlan, *, always: bool) -> None:
    """Refuse user-mode cards that this host can not give.

    Raises:
        MissingProgramError: passt is not installed, and is `always` needed, or only it publishes
            such ports.
        HostError: a port needs IPv6, which this host does not have.
        InputError: a port is published at two addresses.
    """
    user = [nic for nic in plan.nics if isinstance(nic, UserNic)]
    ports = [port for nic in user for port in nic.forwards]
    if (always and user) or any(":" in port.host_address for port in ports):
        require_program(PASST)
    if has_passt():
        require_ipv6(ports)
        for nic in user:
            require_one_address(nic.forwards)


def connected_card(machine: LaunchPlan | InstanceRecord, nic: UserNic, opened: Opened) -> int:
    """Start passt for a network card; `opened` has the card's end of the link, and a report.

    The link is a stream socket for frames with their lengths (`cerne.network.guest_frames`). What
    serves it ends when it is closed.

    Raises:
        EngineError: starting it failed.
    """
    program = require_program(PASST)
    name = f"net{0 if nic.slot is None else nic.slot + 1}"
    room = room_of(program, CONFINING_PROGRAM_CALLS, network=True)
    room.file_size = _LARGEST_FILE
    if Path(RESOLVER_DIRECTORY).is_dir():
        room.reads.append(RESOLVER_DIRECTORY)
    if any(forward.host_port < FIRST_FREE_PORT for forward in nic.forwards):
        room.capabilities.append(NET_BIND_SERVICE)
    what = f"passt, which serves {name} of {machine.name},"
    mapped = bool(nic.host_access)
    with opened.pair() as (link, supervisors_end), opened.report(what) as report:
        task = Task(
            what=what,
            command=passt_command(program, LINK, READY, nic.mac, nic.forwards, maps_host=mapped),
            report=report,
        )
        card = CardTask(supervisors_end, nic.mac, nic.host_access)
        start_supervisor(machine, name, task, room, card)
    return link
