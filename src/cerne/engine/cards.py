"""Starts passt, which serves a network card with user-mode networking, for both engines."""

from __future__ import annotations

from cerne.engine.detached import listening_socket
from cerne.engine.opened import Opened
from cerne.engine.plan import LaunchPlan, UserNic
from cerne.engine.record import InstanceRecord
from cerne.engine.supervised import backend_socket, supervised
from cerne.engine.supervisor import LINK, READY
from cerne.host.programs import require_program
from cerne.network.passt import passt_command
from cerne.vmm.config import NicConfig


def network_backend(
    machine: LaunchPlan | InstanceRecord, nic: UserNic, opened: Opened
) -> NicConfig:
    """Start passt for a network card on a socket; `opened` has passt's report.

    Raises:
        EngineError: starting it failed.
    """
    name = _network_name(nic)
    command = passt_command(require_program("passt"), LINK, READY, nic.forwards)
    what = f"passt, which serves {name} of {machine.name},"
    with listening_socket(backend_socket(machine, name)) as listener, opened.report(what) as report:
        backend = supervised(machine, name, what, listener, opened, command, report=report)
    return NicConfig(
        nic.mac, backend.link, slot=nic.slot, address=backend.address, leash=backend.leash
    )


def _network_name(nic: UserNic) -> str:
    return f"net{0 if nic.slot is None else nic.slot + 1}"
