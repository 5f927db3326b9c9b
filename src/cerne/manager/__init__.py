"""Machines: their store, and the operations on them.

Only the manager knows the store. It knows no ioctl and no flag of QEMU: engines do.
"""

from cerne.manager.home import Home
from cerne.manager.machines.machine import Machine
from cerne.manager.machines.stats import Rates, Stats
from cerne.manager.machines.stop import STOP_TIMEOUT
from cerne.manager.machines.telling import READY_TIMEOUT
from cerne.manager.manager import Manager
from cerne.manager.store import Event, Record, State

__all__ = [
    "READY_TIMEOUT",
    "STOP_TIMEOUT",
    "Event",
    "Home",
    "Machine",
    "Manager",
    "Rates",
    "Record",
    "State",
    "Stats",
]
