"""Machines as people know them: their specification, their store, their life.

The manager alone knows the store. It knows no ioctl and no flag of QEMU: engines do.
"""

from cerne.manager.home import Home
from cerne.manager.life import READY_TIMEOUT
from cerne.manager.machine import STOP_TIMEOUT, Machine
from cerne.manager.manager import Manager
from cerne.manager.stats import Stats
from cerne.manager.store import Event, Record, State

__all__ = [
    "READY_TIMEOUT",
    "STOP_TIMEOUT",
    "Event",
    "Home",
    "Machine",
    "Manager",
    "Record",
    "State",
    "Stats",
]
