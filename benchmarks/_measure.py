"""What every benchmark shares: the host's line, timing, and a table for the terminal."""

from __future__ import annotations

import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_LONGEST = 300
"""Seconds in which a benchmark ends."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Several measurements of one thing, in one unit."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, scale: float = 1.0, digits: int = 1) -> str:
        """Median with minimum and maximum, each multiplied by `scale`."""
        low, mid, high = (
            f"{value * scale:.{digits}f}"
            for value in (min(self.values), self.median, max(self.values))
        )
        return f"{mid} ({low} to {high})"


def end_in_time() -> None:
    """End this benchmark, and remove what it made, if it has not ended after five minutes."""

    def end(*_: object) -> None:
        raise SystemExit(f"the benchmark did not end within {_LONGEST} s")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(_LONGEST)


def seconds(action: Callable[[], object]) -> float:
    """The wall-clock time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(runs: int, *actions: Callable[[], float]) -> tuple[Sample, ...]:
    """Run the actions A B A B …, so that a drift of the machine's speed strikes all alike."""
    rounds = [[action() for action in actions] for _ in range(runs)]
    return tuple(Sample(tuple(values)) for values in zip(*rounds, strict=True))


def private_memory(pid: int) -> int:
    """Resident bytes that a process shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def host_line() -> str:
    """The date, the host and its load, for the head of a table."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    date = datetime.now(UTC).date()
    cpus, load = os.cpu_count(), os.getloadavg()[0]
    return f"{date}, {model}, {cpus} CPUs, Linux {platform.release()}, load {load:.1f}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is readable on a terminal and is Markdown too."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    print(f"\n## {title}\n\n{host_line()}\n")
    print(_row(header, widths))
    print(_row(["-" * width for width in widths], widths))
    for row in rows:
        print(_row(row, widths))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"
