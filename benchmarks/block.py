"""A guest's disk: operations a second, and the host's processor time for each; QEMU beside us.

The guest keeps a queue full from ring 3 and looks for what is done, so that its own part is small
and no interrupt is needed. The disk is a raw file in the page cache on all sides. The processor
time is that of the monitor and its helpers without the vCPU, which never rests here.

    block.py                  beside vhost-user and QEMU
    block.py --against SRC    beside the VMM of another version of Cerne, of whose package this is
                              the directory, in turns

With --against the quotient of this version's rate and the other's is printed too, pair by pair.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from _guest import Guests, Measured, rate_and_cost
from _measure import Sample, print_table
from _native import machines
from cerne.engine.plan import DiskPlan
from cerne.units import KIB, MIB

_RUNS = 3
_PAIRS = 3
_DISK = 256 * MIB
_SECTOR = 512
_OPERATIONS = {4 * KIB: 8000, 128 * KIB: 2000}
_READ, _WRITE = 0, 1


@dataclass(frozen=True, slots=True)
class _Load:
    """What the guest asks of its disk."""

    write: int
    size: int
    depth: int
    random: int

    @property
    def count(self) -> int:
        return _OPERATIONS[self.size] if self.depth > 1 else _OPERATIONS[self.size] // 4

    @property
    def command(self) -> str:
        sectors = _DISK // _SECTOR
        return f"block {self.write} {self.size} {self.depth} {self.random} {self.count} {sectors}"

    def __str__(self) -> str:
        kind = "random" if self.random else "sequential"
        what = "write" if self.write else "read"
        return f"{kind} {what}, {self.size // KIB} KiB, depth {self.depth}"


_LOADS = [
    _Load(write, size, depth, random)
    for size, depth, random, write in itertools.product(
        _OPERATIONS, (1, 32), (0, 1), (_READ, _WRITE)
    )
]

Way = Callable[[_Load], Measured]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path)
    against = parser.parse_args().against
    with machines() as made:
        guests = Guests(made)
        disk = made.home / "disk.raw"
        disk.write_bytes(os.urandom(MIB) * (_DISK // MIB))
        if against is not None:
            _compare(guests, DiskPlan(disk, "raw"), against)
            return
        ways: dict[str, Way] = {
            "Cerne, Python": partial(_native, guests, DiskPlan(disk, "raw")),
            "Cerne, vhost-user": partial(_native, guests, DiskPlan(disk, "raw", outside=True)),
            "QEMU": partial(_qemu, guests, disk),
        }
        rows = [_row(load, ways) for load in _LOADS]
    title = f"virtio-blk: thousands of operations a second, and µs of CPU for each; {_RUNS} runs"
    print_table(title, ("load", *ways), rows)


def _compare(guests: Guests, disk: DiskPlan, against: Path) -> None:
    """Measure this version and another one in turns, and print the table."""
    rows = []
    for load in _LOADS:
        pairs = []
        for _ in range(_PAIRS):
            with _vmm_of(against):
                other = _native(guests, disk, load)
            with _vmm_of(Path(__file__).parents[1] / "src"):
                pairs.append((other, _native(guests, disk, load)))
        others, ours = zip(*pairs, strict=True)
        quotients = Sample(tuple(other.seconds / our.seconds for other, our in pairs))
        cells = [rate_and_cost(load.count, several) for several in (others, ours)]
        rows.append((str(load), *cells, quotients.text(digits=2)))
    title = (
        f"virtio-blk: thousands of operations a second, and µs of CPU for each; {_PAIRS} pairs of"
        f" runs; the other version is that of {against}"
    )
    print_table(title, ("load", "the other version", "this version", "this/other"), rows)


@contextlib.contextmanager
def _vmm_of(source: Path) -> Iterator[None]:
    """Start machines with the VMM of another version of Cerne, each in a new process."""
    start = str(source / "cerne/vmm/start.py")
    program = (sys.executable, "-I", "-S", start, "machine")
    launching = "cerne.engine.native.launching"
    with (
        patch(f"{launching}.VMM", program),
        patch(f"{launching}.running_fork_server", lambda: None),
    ):
        yield


def _row(load: _Load, ways: dict[str, Way]) -> tuple[str, ...]:
    runs = [[way(load) for way in ways.values()] for _ in range(_RUNS)]
    cells = (rate_and_cost(load.count, several) for several in zip(*runs, strict=True))
    return (str(load), *cells)


def _native(guests: Guests, disk: DiskPlan, load: _Load) -> Measured:
    return guests.native(load.command, disks=[disk])


def _qemu(guests: Guests, disk: Path, load: _Load) -> Measured:
    return guests.qemu(
        load.command,
        *("-blockdev", f"file,node-name=disk,filename={disk}"),
        *("-device", "virtio-blk-pci,disable-legacy=on,drive=disk"),
    )


if __name__ == "__main__":
    main()
