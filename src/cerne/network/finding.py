"""What the doctor says about networks with names on this host."""

from __future__ import annotations

import os
from collections.abc import Iterable

from cerne.host.finding import Finding
from cerne.network.firewall import forward_notes
from cerne.network.preflight import lacks
from cerne.spec.network import Uplink

_TOPIC = "networks"


def network_finding() -> Finding:
    """Which uplinks networks may have here, and what is missing for the usual one."""
    missing = lacks(Uplink.USER)
    if missing:
        words = "; ".join(lack.message for lack in missing)
        advice = "; ".join(dict.fromkeys(lack.hint for lack in missing))
        return Finding(_TOPIC, words, False, advice)
    # The others need no program that this one does not need.
    by_root = "" if os.geteuid() else ", nat, bridge"
    able = [f"with the uplinks user, none{by_root}", *host_notes(Uplink.NAT)]
    return Finding(_TOPIC, "; ".join(able), True)


def host_notes(uplink: Uplink) -> Iterable[str]:
    """What of an uplink does not work on this host, as sentences with what helps."""
    if uplink is not Uplink.NAT or os.geteuid():
        return ()
    return forward_notes()
