"""The host's side of a machine's balloon: its QMP commands, event and properties.

They are QEMU's (``qapi/machine.json``, docs/virtio-balloon-stats.txt), so that one client serves
both engines.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cerne.devices.virtio.balloon import STATISTIC_NAMES, BalloonDevice
from cerne.errors import InputError
from cerne.kvm.memory import GuestMemory
from cerne.vmm.loop import Loop
from cerne.vmm.slots import Emit

if TYPE_CHECKING:
    from cerne.vmm.qmp import Request

QOM_PATH = "/machine/peripheral/balloon"
STATISTICS = "guest-stats"
INTERVAL = "guest-stats-polling-interval"

_EVENT = "BALLOON_CHANGE"
_QUIET = 1.0
"""The least seconds between two events, for a balloon that changes often."""
_NOT_TOLD = (1 << 64) - 1
_MOST_BYTES = (1 << 63) - 1
_LONGEST_INTERVAL = (1 << 32) - 1


class Balloon:
    """A balloon device, and the memory that its guest should have, in bytes."""

    def __init__(self, loop: Loop, memory: GuestMemory, emit: Emit) -> None:
        self.device = BalloonDevice(memory, self._changed)
        self._loop = loop
        self._memory = memory
        self._emit = emit
        self._telling = False
        self._last_told = 0.0
        self._interval = 0
        self._polls = False

    def leave(self, size: int) -> None:
        """Ask the guest to use only this much of its memory without plugged blocks (as QEMU)."""
        self.device.want(max(0, self._memory.fixed_size - size))

    def qmp_balloon(self, request: Request) -> object:
        """``balloon``: ask the guest to use only ``value`` bytes."""
        self.leave(request.arguments.integer("value", _MOST_BYTES, 1))
        return {}

    def qmp_query_balloon(self, _: Request) -> object:
        """``query-balloon``: the bytes that the guest has now."""
        return {"actual": self._left}

    def qmp_qom_get(self, request: Request) -> object:
        """``qom-get`` of this device's two properties."""
        if _property(request) == INTERVAL:
            return self._interval
        said = self.device.statistics
        stats = {name: said.get(name, _NOT_TOLD) for name in STATISTIC_NAMES}
        return {"stats": stats, "last-update": self.device.told}

    def qmp_qom_set(self, request: Request) -> object:
        """``qom-set``: the seconds between two requests of statistics; 0 for none."""
        if _property(request) != INTERVAL:
            raise InputError(f"the property {STATISTICS} is read-only")
        self._interval = request.arguments.integer("value", _LONGEST_INTERVAL)
        if self._interval and not self._polls:
            self._poll()
        return {}

    @property
    def _left(self) -> int:
        return max(0, self._memory.fixed_size - self.device.size)

    def _poll(self) -> None:
        self._polls = self._interval > 0
        if self._polls:
            self.device.ask()
            self._loop.after(self._interval, self._poll)

    def _changed(self) -> None:
        """Note a change; from any thread, as often as the guest likes."""
        if not self._telling:
            self._telling = True
            self._loop.ask(self._tell_in_time)

    def _tell_in_time(self) -> None:
        quiet = self._last_told + _QUIET - time.monotonic()
        if quiet > 0:
            self._loop.after(quiet, self._tell)
        else:
            self._tell()

    def _tell(self) -> None:
        self._telling = False
        self._last_told = time.monotonic()
        self._emit(_EVENT, {"actual": self._left})


def _property(request: Request) -> str:
    path = request.arguments.text("path", 256)
    name = request.arguments.text("property", 256)
    if path != QOM_PATH or name not in (STATISTICS, INTERVAL):
        raise InputError(f"{path} has no property {name}")
    return name
