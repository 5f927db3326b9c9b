"""What the doctor says about networks with names on this host."""

from __future__ import annotations

import os

from cerne.host.finding import Finding
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
    return Finding(_TOPIC, f"with the uplinks user, none{by_root}", True)
