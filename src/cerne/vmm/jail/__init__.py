"""The walls around a process of a machine (docs/isolation.md).

A process confines itself once, for ever, before a guest runs. Only this package and `cerne.kvm` use
ctypes.
"""

from __future__ import annotations

from cerne.vmm.jail.title import Title
from cerne.vmm.jail.walls import Confinement, Wall, Walls, enter

__all__ = ["Confinement", "Title", "Wall", "Walls", "enter"]
