"""How long a guest's disk stands still: as the guest sees it, which writes and reads for ever.

The disk is qcow2 over a raw file in the page cache, and gets an overlay each time, as machines' do.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace

from _guest import built, ticks_per_second
from _measure import Sample, print_table, seconds
from _native import Machines, Pauses, machines, touch_memory
from cerne.engine.plan import DiskPlan, KernelBoot
from cerne.storage.overlay import create_overlay
from cerne.units import GIB, MIB

_DISK = 256 * MIB
_SECTOR = 512
_WRITTEN = 1.0
"""Seconds in which the guest writes to its new overlay, before it gets another."""
_TIMEOUT = 60.0
_RUNS = 7
_MEMORY = GIB

Action = Callable[[Machines, "Busy"], None]


class Busy:
    """A machine whose guest never lets its disk rest."""

    def __init__(self, made: Machines, memory: int) -> None:
        self._made = made
        self._ticks_per_second = ticks_per_second()
        base = made.home / "base.raw"
        with base.open("wb") as file:
            file.truncate(_DISK)
        self._top = DiskPlan(base, "raw")
        self._overlays = 0
        boot = KernelBoot(built(made.home / "stall"), None, f"stall {_DISK // _SECTOR}")
        self.plan = replace(made.plan(boot, memory), disks=(self.overlay(),))
        self._top = self.plan.disks[0]
        touch_memory(made.start(self.plan).pid, memory)

    def overlay(self) -> DiskPlan:
        """Another overlay of the disk as it is."""
        self._overlays += 1
        path = self._made.home / f"overlay-{self._overlays}"
        create_overlay(self._top.path, self._top.format, path)
        return DiskPlan(path, "qcow2")

    def goes_on_with(self, top: DiskPlan) -> None:
        """The machine has this overlay now."""
        self._top = top
        self.plan = replace(self.plan, disks=(top,))

    def stall(self, action: Callable[[], None]) -> float:
        """The longest that no request is done, in seconds, from the action's start to its end."""
        time.sleep(_WRITTEN)
        self._longest()
        action()
        return self._longest()

    def _longest(self) -> float:
        """What the guest says, which begins anew with that."""
        with socket.socket(socket.AF_UNIX) as console:
            console.settimeout(_TIMEOUT)
            console.connect(str(self.plan.console_socket))
            console.sendall(b"?")
            said = b""
            while not (said.endswith(b"\n") and b"E" in said):
                said += console.recv(64)
        return int(said.rpartition(b"E")[2], 16) / self._ticks_per_second


def print_stalls(what: str, action: Action, pauses: Pauses) -> None:
    """Print how long the disk stands still, with the pause, and where nothing is done as long."""
    with machines() as made:
        busy = Busy(made, _MEMORY)
        pauses.sample()
        taken: list[float] = []

        def timed() -> None:
            taken.append(seconds(lambda: action(made, busy)))

        stalls = [busy.stall(timed) for _ in range(_RUNS)]
        as_long = Sample(tuple(taken)).median
        nothing = Sample(tuple(busy.stall(lambda: time.sleep(as_long)) for _ in range(_RUNS)))
    samples = (pauses.sample(), Sample(tuple(stalls)), nothing)
    header = ("source's pause", "its disk stands still", "the same with nothing done")
    title = f"{what} of {_MEMORY // MIB} MiB whose disk never rests: ms, median of {_RUNS}"
    print_table(title, header, [tuple(sample.text(1000) for sample in samples)])
