"""Whose guest a guest is: the identity that it is given, and what it says of the one that it had.

A machine that was made of another one, by a fork, a snapshot, a template or an image, has the
other's disk. Its agent gives up what the disk says of the other (docs/machines.md, Clones).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cerne.manager.machines.machine_id import has_own_identity, machine_id

if TYPE_CHECKING:
    from cerne.guest import GuestAgent
    from cerne.guest.client import Renewal
    from cerne.manager.machines.context import MachineContext

_log = logging.getLogger(__name__)

HOOKS_TIMEOUT = 60.0
"""Seconds that a clone has for its keys and its hooks."""


def renew(context: MachineContext, agent: GuestAgent, *, restored: bool, timeout: float) -> None:
    """Tell a guest who it is; one that is `restored` has the network card of another machine.

    Raises:
        GuestError: it does not answer, or a step failed of which others depend.
    """
    has_disk = context.home.root_disk(context.id).exists()
    own = context.id if has_own_identity(context.spec, has_disk=has_disk) else ""
    done = agent.renew(
        hostname=context.last.name,
        mac=context.first_mac() if restored else None,
        machine=own,
        machine_id=machine_id(own) if own else "",
        timeout=timeout,
    )
    _report(context.last.name, context.last.parent, done)


def warn_without_agent(context: MachineContext) -> None:
    """Say that a clone without an agent is the same as its source to all that look at it."""
    _log.warning(
        "%s has no agent, and kept its source's identity: host name, machine-id, keys of SSH and"
        " leases of DHCP; change them in the guest",
        context.last.name,
    )


def _report(name: str, parent: str, done: Renewal) -> None:
    if done.kept and parent:
        _log.warning(
            "the agent in %s is older, and the guest kept its source's machine-id and keys of SSH;"
            " change them in the guest",
            name,
        )
    if done.failed:
        _log.warning(
            "%s is a clone, and in its guest this failed: %s; see: cerne exec %s -- journalctl -u"
            " cerne-agent",
            *(name, ", ".join(done.failed), name),
        )
