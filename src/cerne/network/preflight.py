"""What networks need of this host, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass

from cerne.spec.network import Uplink


@dataclass(frozen=True, slots=True)
class Lack:
    """Something that is missing for networks."""

    message: str
    hint: str
    """The command that helps."""


def lacks(uplink: Uplink) -> tuple[Lack, ...]:
    """What is missing here for a network with this uplink, without trying to make one."""
    return ()
