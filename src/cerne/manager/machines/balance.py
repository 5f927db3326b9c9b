"""Asking guests for memory that they do not use, if the host is short of it, and giving it back.

No process of Cerne watches the host. So the balance is looked at where it matters: before each
start for which the host has too little memory at that moment, and by ``cerne balance``, which a
timer may run. In between a guest helps itself: one that runs out of memory takes pages from its
balloon without any command. A machine is asked for nothing below what is promised to it: its
guarantee, or all of its memory if it has none.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cerne.errors import CerneError
from cerne.host.supply import available_memory, memory_pressure, supplied_memory
from cerne.manager.capacity import memory_reserve
from cerne.manager.lock import held
from cerne.manager.machines.context import MachineContext
from cerne.manager.store import State
from cerne.units import MIB

if TYPE_CHECKING:
    from cerne.manager.machines.context import ManagerContext
    from cerne.manager.store import Record

_LEAST_SPARE = 64 * MIB
_SPARE_PART = 8
"""A guest keeps an eighth of its memory available, or `_LEAST_SPARE` if that is more."""
_HIGH_PRESSURE = 10.0
"""Percent of the time in which a process of the host waited for memory: the host is short."""
_PATIENCE = 5.0
_MOMENT = 0.2


@dataclass(frozen=True, slots=True)
class Guest:
    """The memory of one machine that runs, in bytes."""

    machine: str
    given: int
    """What its guest may use now."""
    used: int
    """What its guest uses, by its own report."""
    least: int
    """What is promised to it."""
    most: int
    """What it may have by its specification."""

    @property
    def comfortable(self) -> int:
        """What it has to be given so that it has some to spare."""
        spare = max(_LEAST_SPARE, self.most // _SPARE_PART)
        return min(self.most, max(self.least, self.used + spare))


@dataclass(frozen=True, slots=True)
class Change:
    """What a machine's guest is asked for or gets."""

    machine: str
    before: int
    """Bytes that it could use."""
    after: int
    """Bytes that it may use."""


@dataclass(frozen=True, slots=True)
class Balance:
    """The host's memory, and what was changed for it."""

    available: int
    """Bytes that were available when it was looked at."""
    reserve: int
    """Bytes that should be available."""
    changes: tuple[Change, ...]


def decide(guests: Sequence[Guest], spare: int) -> list[Change]:
    """What guests are to give or get; `spare` is what the host has to give, negative if it lacks.

    A guest that has too little gets up to what it needs in any case. What lacks then is taken from
    what others do not use, each by the same part; what is left over goes to those that had to give.
    """
    targets = {each.machine: max(each.given, each.comfortable) for each in guests}
    spare -= sum(targets[each.machine] - each.given for each in guests)
    if spare < 0:
        unused = {each.machine: max(0, each.given - each.comfortable) for each in guests}
        part = min(1.0, -spare / max(1, sum(unused.values())))
        for machine, size in unused.items():
            targets[machine] -= int(size * part)
    else:
        for each in sorted(guests, key=lambda guest: guest.given - guest.used):
            more = min(spare, each.most - targets[each.machine])
            targets[each.machine] += more
            spare -= more
    changes = [
        Change(each.machine, each.given, -(-targets[each.machine] // MIB) * MIB) for each in guests
    ]
    return [change for change in changes if abs(change.after - change.before) >= MIB]


def balance(manager: ManagerContext) -> Balance:
    """Ask guests for what the host lacks, or give back what it has to spare."""
    available, reserve = available_memory(), memory_reserve()
    short = available < reserve or memory_pressure() > _HIGH_PRESSURE
    # Between one reserve and two nothing is done, so that memory does not go to and fro.
    spare = min(available - 2 * reserve, -reserve) if short else max(0, available - 2 * reserve)
    return Balance(available, reserve, tuple(_carry_out(manager, spare)))


def make_room(manager: ManagerContext, size: int) -> None:
    """Ask guests for memory before a start, if this host has not `size` bytes available.

    The ledger has promised them; guests that do not give them back in time do not stop the start.
    """
    wanted = min(size + memory_reserve(), supplied_memory())
    lacks = wanted - available_memory()
    if lacks <= 0 or not _carry_out(manager, -lacks):
        return
    deadline = time.monotonic() + _PATIENCE
    while available_memory() < wanted and time.monotonic() < deadline:
        time.sleep(_MOMENT)


def _carry_out(manager: ManagerContext, spare: int) -> list[Change]:
    guests = {}
    for record in manager.store.live():
        context = MachineContext(manager, record)
        guest = _guest(context, record)
        if guest is not None:
            guests[record.name] = (context, guest)
    changes = decide([guest for _, guest in guests.values()], spare)
    return [change for change in changes if _ask(guests[change.machine][0], change.after)]


def _guest(context: MachineContext, record: Record) -> Guest | None:
    """What is known of a machine's memory; None if nothing can be asked of it."""
    if record.state is not State.RUNNING:
        return None
    # A machine that ends meanwhile, or does not answer, is left as it is.
    with contextlib.suppress(CerneError):
        spec = context.spec
        least = spec.resources.memory.guarantee
        most = spec.memory if spec.balloon is None else spec.balloon
        if least is None or least >= most or spec.resources.memory.hugepages:
            return None
        use = context.instance(record).stats(runs=True)
        if use is None or use.used is None:
            return None
        return Guest(record.name, use.given, use.used, least, most)
    return None


def _ask(context: MachineContext, size: int) -> bool:
    """Set a machine's balloon, unless another command works on it; whether it was set."""
    with (
        contextlib.suppress(CerneError),
        held(context.lock_path, "balance", context.last.name, patience=0),
    ):
        record = context.store.get(context.id)
        if record.state is State.RUNNING:
            context.instance(record).set_memory(size)
            return True
    return False
