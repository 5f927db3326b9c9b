"""A guest that writes to its disk without end, beside one that reads: what the other one gets.

Both disks are raw files in the page cache of one host. The reader asks for random pieces of 4 KiB,
one after the other or 32 at once, and counts from inside; the writer keeps 32 requests of 128 KiB
in its queue. The writer's processor never rests, with a limit of its disk too, so that the last two
columns differ in the disk only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from _guest import MEMORY, Guests, Measured, qemu
from _measure import Sample, print_table
from _native import Machines, machines
from cerne.engine.plan import DiskPlan, KernelBoot
from cerne.engine.qemu.limits import limit_disks
from cerne.engine.qmp import QmpClient
from cerne.spec.resources import DiskResources
from cerne.units import KIB, MIB

_RUNS = 5
_DISK = 256 * MIB
_SECTORS = _DISK // 512
_LIMIT = 10 * MIB
_READS = 3000
_WITHOUT_END = 1 << 40
_HOG = f"block 1 {128 * KIB} 32 0 {_WITHOUT_END} {_SECTORS}"

Hog = Callable[[int | None], contextlib.AbstractContextManager[object]]
Reader = Callable[[str], Measured]


def main() -> None:
    """Measure, and print the table."""
    with machines() as made:
        guests = Guests(made)
        ours, theirs = made.home / "reader.raw", made.home / "writer.raw"
        for disk in (ours, theirs):
            disk.write_bytes(os.urandom(MIB) * (_DISK // MIB))
        engines: dict[str, tuple[Reader, Hog]] = {
            "native": (
                lambda command: guests.native(command, disks=[DiskPlan(ours, "raw")]),
                lambda limit: _native_hog(made, guests, theirs, limit),
            ),
            "QEMU": (
                lambda command: guests.qemu(command, *_drive(ours)),
                lambda limit: _qemu_hog(made, guests, theirs, limit),
            ),
        }
        rows = [_row(name, depth, *engine) for name, engine in engines.items() for depth in (1, 32)]
    header = ("engine, reads at once", "alone", "beside the writer", "beside it with a limit")
    title = (
        f"random reads of 4 KiB, thousands a second; {_RUNS} rounds; the writer's limit is"
        f" {_LIMIT // MIB} MiB a second"
    )
    print_table(title, header, rows)


def _row(name: str, depth: int, read: Reader, hog: Hog) -> tuple[str, ...]:
    command = f"block 0 {4 * KIB} {depth} 1 {_READS} {_SECTORS}"
    rounds: list[Sequence[float]] = []
    for _ in range(_RUNS):
        alone = read(command).seconds
        with hog(None):
            beside = read(command).seconds
        with hog(_LIMIT):
            limited = read(command).seconds
        rounds.append([_READS / taken / 1000 for taken in (alone, beside, limited)])
    cells = [Sample(tuple(rates)).text(digits=2) for rates in zip(*rounds, strict=True)]
    return (f"{name}, {depth}", *cells)


@contextlib.contextmanager
def _native_hog(made: Machines, guests: Guests, disk: Path, limit: int | None) -> Iterator[None]:
    plan = made.plan(KernelBoot(guests.kernel, None, _HOG), MEMORY)
    process = made.start(replace(plan, disks=(DiskPlan(disk, "raw"),)))
    try:
        guests.wait_until_measured(plan.console_log)
        with QmpClient(plan.qmp_socket) as qmp:
            limits = {"iops": None, "bps": limit, "receive": None, "send": None}
            qmp.execute("cerne-set-limits", limits)
        yield
    finally:
        made.end([process])


@contextlib.contextmanager
def _qemu_hog(made: Machines, guests: Guests, disk: Path, limit: int | None) -> Iterator[None]:
    with qemu(made, guests.kernel, _HOG, *_drive(disk), machine="q35") as (_, plan):
        guests.wait_until_measured(plan.console_log)
        with QmpClient(plan.qmp_socket) as client:
            limit_disks(client, DiskResources(rate=limit))
        yield


def _drive(disk: Path) -> tuple[str, ...]:
    return (
        *("-blockdev", f"file,node-name=disk,filename={disk}"),
        *("-device", "virtio-blk-pci,disable-legacy=on,drive=disk"),
    )


if __name__ == "__main__":
    main()
