"""What faces use of Cerne: `Host`, an interface of values, streams and operations.

`connect` is the one way to a host. What a host is, `LocalHost` is by the manager of this process.
Everything here is loaded when it is first used, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from cerne.client.connect import connect

if TYPE_CHECKING:
    from cerne.client.host import Host, Machine, Network, Pool, Snapshot
    from cerne.guest import GuestProcess, Output, Stream, TerminalSize
    from cerne.host.finding import Finding
    from cerne.host.process_walls import ProcessWalls
    from cerne.images import Image, Progress
    from cerne.images.recipe import Recipe
    from cerne.manager import Event, Rates, Record, Stats
    from cerne.manager.capacity import Capacity
    from cerne.manager.machines.balance import Balance, Change
    from cerne.manager.machines.stop import KILLED
    from cerne.manager.store import CardRow, OperationRow

_HOMES = {
    "Balance": "cerne.manager.machines.balance",
    "Capacity": "cerne.manager.capacity",
    "Change": "cerne.manager.machines.balance",
    "CardRow": "cerne.manager.store",
    "Event": "cerne.manager",
    "Finding": "cerne.host.finding",
    "GuestProcess": "cerne.guest",
    "ProcessWalls": "cerne.host.process_walls",
    "Host": "cerne.client.host",
    "Image": "cerne.images",
    "KILLED": "cerne.manager.machines.stop",
    "Machine": "cerne.client.host",
    "OperationRow": "cerne.manager.store",
    "Output": "cerne.guest",
    "Network": "cerne.client.host",
    "Pool": "cerne.client.host",
    "Progress": "cerne.images",
    "Recipe": "cerne.images.recipe",
    "Rates": "cerne.manager",
    "Record": "cerne.manager",
    "Snapshot": "cerne.client.host",
    "Stats": "cerne.manager",
    "Stream": "cerne.guest",
    "TerminalSize": "cerne.guest",
}

__all__ = [
    "KILLED",
    "Balance",
    "Capacity",
    "CardRow",
    "Change",
    "Event",
    "Finding",
    "GuestProcess",
    "Host",
    "Image",
    "Machine",
    "Network",
    "OperationRow",
    "Output",
    "Pool",
    "ProcessWalls",
    "Progress",
    "Rates",
    "Recipe",
    "Record",
    "Snapshot",
    "Stats",
    "Stream",
    "TerminalSize",
    "connect",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
