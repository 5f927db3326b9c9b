"""What a snapshot of a native machine costs, and a start from one, as memory grows."""

from __future__ import annotations

import shutil
import time

from _measure import Sample, print_table
from _native import ECHO, Machines, Pauses, answer, machines, touch_memory
from _stall import Busy, print_stalls
from cerne.engine.plan import LaunchPlan
from cerne.units import GIB, MIB

_RUNS = 5
_SIZES = (128 * MIB, GIB, 4 * GIB)


def main() -> None:
    """Measure in a directory of its own, and print the table."""
    pauses = Pauses()
    rows = [_row(size, pauses) for size in _SIZES]
    header = ("touched memory", "pause, ms", "complete on disk, s", "check and start to answer, ms")
    print_table(f"A guest of a few bytes: median of {_RUNS}", header, rows)
    print_stalls("A snapshot", _save_busy, pauses)


def _row(size: int, pauses: Pauses) -> tuple[str, ...]:
    with machines() as made:
        source = made.small(ECHO, size)
        touch_memory(made.start(source).pid, size)
        saves, starts = [], []
        for _ in range(_RUNS):
            begun = time.perf_counter()
            other = made.save(source)
            saves.append(time.perf_counter() - begun)
            starts.append(_started(made, other))
            shutil.rmtree(other.runtime)
    samples = (pauses.sample().text(1000), Sample(tuple(saves)).text(digits=2))
    return (f"{size // MIB} MiB", *samples, Sample(tuple(starts)).text(1000))


def _save_busy(made: Machines, busy: Busy) -> None:
    own = busy.overlay()
    shutil.rmtree(made.save(busy.plan, (own,)).runtime)
    busy.goes_on_with(own)


def _started(made: Machines, plan: LaunchPlan) -> float:
    begun = time.perf_counter()
    made.engine.require(plan)
    process = made.start(plan)
    taken = answer(plan, begun)
    made.end([process])
    return taken


if __name__ == "__main__":
    main()
