"""What a machine's process costs: time to the guest's first instruction, memory, and fifty of them.

The guest is a few bytes that speak on the serial port, entered by PVH, and QEMU's microvm runs the
very same file by the same /dev/kvm. Times are from the start of the process, seen from outside.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from _guest import MEMORY, Guests, qemu
from _measure import Sample, end_in_time, print_table, private_memory
from _native import Machines, first_byte, machines
from cerne.engine.native import launching
from cerne.engine.plan import KernelBoot
from cerne.engine.qmp import QmpClient
from cerne.units import KIB, MIB

_RUNS = 9
_MANY = 50
# Says a byte and halts: fifty that wait for work.
_SLEEPER = bytes.fromhex("66baf803 b02e ee fa f4 ebfd")
_REST = 0.3
_TIMEOUT = 30.0
# One read of a port: it says so, and waits for ever.
_COMMAND = "port 1"


@dataclass(frozen=True, slots=True)
class _Process:
    """What was seen of one."""

    seconds: float
    beyond: int
    """Resident bytes beside the guest's memory."""
    private: int
    """Those of all resident bytes that no other process shares."""


def main() -> None:
    """Measure, and print the tables."""
    end_in_time()
    with machines() as made:
        kernel = Guests(made).kernel
        ways: dict[str, Callable[[], _Process]] = {
            "Cerne, a new interpreter": lambda: _ours(made, kernel, forked=False),
            "Cerne, forked from a loaded one": lambda: _ours(made, kernel, forked=True),
            "QEMU, microvm": lambda: _qemu(made, kernel),
        }
        for way in ways.values():
            way()
        runs = [[way() for way in ways.values()] for _ in range(_RUNS)]
        rows = [
            _row(name, several) for name, several in zip(ways, zip(*runs, strict=True), strict=True)
        ]
        header = (
            "process",
            "to the first instruction, ms",
            "beyond the guest, MiB",
            "private, MiB",
        )
        print_table(f"One machine of {MEMORY // MIB} MiB; median of {_RUNS}", header, rows)
        print_table(f"{_MANY} machines of {MEMORY // MIB} MiB", ("what", "value"), _many(made))


def _row(name: str, several: tuple[_Process, ...]) -> tuple[str, ...]:
    return (
        name,
        Sample(tuple(each.seconds for each in several)).text(1000),
        Sample(tuple(each.beyond for each in several)).text(1 / MIB),
        Sample(tuple(each.private for each in several)).text(1 / MIB),
    )


def _ours(made: Machines, kernel: Path, *, forked: bool) -> _Process:
    plan = made.plan(KernelBoot(kernel, None, _COMMAND), MEMORY)
    # As a program starts its first machine.
    new = patch.object(launching, "running_fork_server", return_value=None)
    with contextlib.nullcontext() if forked else new, ThreadPoolExecutor() as workers:
        begun = time.perf_counter()
        starting = workers.submit(made.start, plan)
        seconds = first_byte(plan.console_log, begun)
        process = starting.result()
    seen = _seen(process.pid, seconds)
    made.end([process])
    return seen


def _qemu(made: Machines, kernel: Path) -> _Process:
    begun = time.perf_counter()
    with qemu(made, kernel, _COMMAND, machine="microvm") as (process, plan):
        return _seen(process.pid, first_byte(plan.console_log, begun))


def _seen(pid: int, seconds: float) -> _Process:
    time.sleep(_REST)
    resident, guest = _memory(pid)
    return _Process(seconds, resident - guest, private_memory(pid) - guest)


def _memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, and of its largest mapping, which is the guest's memory."""
    sizes = []
    for part in re.split(
        r"^[0-9a-f]+-[0-9a-f]+ ", Path(f"/proc/{pid}/smaps").read_text(), flags=re.M
    ):
        found = dict(re.findall(r"^(Size|Rss): +(\d+) kB$", part, re.M))
        if found:
            sizes.append((int(found["Size"]) * KIB, int(found["Rss"]) * KIB))
    return sum(resident for _, resident in sizes), max(sizes)[1]


def _many(made: Machines) -> list[tuple[str, str]]:
    plans = [made.small(_SLEEPER, MEMORY) for _ in range(_MANY)]
    begun = time.perf_counter()
    processes = [made.start(plan) for plan in plans]
    for plan in plans:
        first_byte(plan.console_log, begun)
    started = time.perf_counter() - begun
    time.sleep(_REST)
    private = sum(private_memory(process.pid) for process in processes)
    begun = time.perf_counter()
    for plan in plans:
        with QmpClient(plan.qmp_socket) as client:
            client.execute("quit")
    clean = [process.wait(_TIMEOUT) for process in processes]
    endings = [made.engine.ending(plan.logs) for plan in plans]
    stopped = time.perf_counter() - begun
    return [
        ("started one after the other, each guest running, s", f"{started:.2f}"),
        ("private memory of all, guests' with it, MiB", f"{private / MIB:.0f}"),
        ("told to quit one after the other, all gone, s", f"{stopped:.2f}"),
        ("ended in order", f"{sum(e.orderly for e in endings)} of {_MANY}, {sum(clean)} gone"),
    ]


if __name__ == "__main__":
    main()
