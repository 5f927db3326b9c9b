"""What a live fork costs: the source's pause, the child's first instruction, its first answer.

Memory is touched from outside, so that a guest that is emulated need not write gigabytes. The times
are from the call of the engine, in this process, and have the control socket and Python in them.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from _measure import Sample, end_in_time, print_table, private_memory, seconds
from _native import (
    ECHO,
    SPEAKER,
    Machines,
    Pauses,
    answer,
    first_byte,
    machines,
    touch_memory,
)
from _stall import Busy, print_stalls
from cerne.arch.x86 import layout
from cerne.engine.plan import LaunchPlan
from cerne.guest import GuestAgent
from cerne.images import Image, ImageStore
from cerne.kvm.kvm import Kvm
from cerne.kvm.memory import GuestMemory
from cerne.manager import Home
from cerne.units import GIB, MIB

_RUNS = 7
_SIZES = (128 * MIB, GIB, 8 * GIB)
_MANY = 100
_READY_TIMEOUT = 120.0
_IDLE = 2.0


def main() -> None:
    """Measure in a directory of its own, and print the tables."""
    end_in_time()
    pauses = Pauses()
    with tempfile.TemporaryDirectory(prefix="cerne-", dir="/tmp") as home, machines() as made:
        image = ImageStore(Path(home), Home.of_this_user().cache).build("tiny")
        _linux(made, image, pauses)
    rows = [_small(size, pauses) for size in _SIZES]
    header = ("touched memory", "source's pause", "first instruction", "first answer")
    print_table(f"Forking a guest of a few bytes: ms, median of {_RUNS}", header, rows)
    print_stalls("A fork", _fork_busy, pauses)


def _small(size: int, pauses: Pauses) -> tuple[str, ...]:
    with machines() as made:
        speaker, echo = made.small(SPEAKER, size), made.small(ECHO, size)
        touch_memory(made.start(speaker).pid, size)
        spoken = Sample(tuple(_until_it_speaks(made, speaker) for _ in range(_RUNS)))
        made.end_all()
        touch_memory(made.start(echo).pid, size)
        answered = Sample(tuple(_until_it_answers(made, echo) for _ in range(_RUNS)))
    samples = (pauses.sample(), spoken, answered)
    return (f"{size // MIB} MiB", *(sample.text(1000) for sample in samples))


def _fork_busy(made: Machines, busy: Busy) -> None:
    own, childs = busy.overlay(), busy.overlay()
    child = replace(made.another(busy.plan), disks=(childs,))
    made.end(made.fork(busy.plan, [child], (own,)))
    busy.goes_on_with(own)


def _until_it_speaks(made: Machines, source: LaunchPlan) -> float:
    """Seconds until a child has written its first byte, looked for while the engine works."""
    child = made.another(source)
    with ThreadPoolExecutor() as workers:
        begun = time.perf_counter()
        forking = workers.submit(made.fork, source, [child])
        taken = first_byte(child.console_log, begun)
        made.end(forking.result())
    return taken


def _until_it_answers(made: Machines, source: LaunchPlan) -> float:
    child = made.another(source)
    begun = time.perf_counter()
    processes = made.fork(source, [child])
    taken = answer(child, begun)
    made.end(processes)
    return taken


def _linux(made: Machines, image: Image, pauses: Pauses) -> None:
    source = made.linux(image, 128 * MIB)
    booted = seconds(lambda: _ready(made, source))
    pauses.sample()
    answers, private = [], []
    for _ in range(_RUNS):
        child = made.another(source)
        begun = time.perf_counter()
        (process,) = made.fork(source, [child])
        GuestAgent(child.agent_sockets).wait_ready(_READY_TIMEOUT)
        answers.append(time.perf_counter() - begun)
        time.sleep(_IDLE)
        private.append(private_memory(process.pid) / MIB)
        made.end([process])
    rows = [
        ("boot to the agent's answer, s", f"{booted:.1f}"),
        ("the source's pause, ms", pauses.sample().text(1000)),
        ("fork to the agent's answer, ms", Sample(tuple(answers)).text(1000)),
        ("memory private to an idle child, MiB", Sample(tuple(private)).text()),
        ("a VM of KVM's with a vCPU, ms", Sample(tuple(_kvm() for _ in range(_RUNS))).text(1000)),
    ]
    children = [made.another(source) for _ in range(_MANY)]
    begun = time.perf_counter()
    processes = made.fork(source, children)
    rows.append((f"{_MANY} forks, all running, s", f"{time.perf_counter() - begun:.2f}"))
    for child in children:
        GuestAgent(child.agent_sockets).wait_ready(_READY_TIMEOUT)
    rows.append((f"{_MANY} forks, all answering, s", f"{time.perf_counter() - begun:.2f}"))
    time.sleep(_IDLE)
    total = sum(private_memory(process.pid) for process in processes) / MIB
    rows.append((f"memory private to {_MANY} children together, MiB", f"{total:.0f}"))
    print_table(f"Forking the tiny image, 128 MiB; median of {_RUNS}", ("what", "value"), rows)


def _ready(made: Machines, plan: LaunchPlan) -> None:
    made.start(plan)
    GuestAgent(plan.agent_sockets).wait_ready(_READY_TIMEOUT)


def _kvm() -> float:
    """Seconds that KVM takes for a VM with its devices, memory and a vCPU."""
    ranges = layout.memory_ranges(128 * MIB)
    with GuestMemory.anonymous(ranges, huge_pages=True) as memory, Kvm() as kvm:
        begun = time.perf_counter()
        with kvm.create_vm() as vm:
            vm.set_memory(memory)
            vm.create_irqchip()
            vm.create_pit2(1)
            with vm.create_vcpu(0):
                return time.perf_counter() - begun


if __name__ == "__main__":
    main()
