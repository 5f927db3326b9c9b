"""What a well-behaved machine gets beside a neighbour that takes all it can.

Two machines of the image `tiny` share the host. One works: a loop of its processor, reads from its
disk, and commands that its agent answers. The other one takes processors, memory, its disk, the
network, its console, or a socket to the host, without end. The work is measured alone and then
beside the neighbour, in turn, first with no options, and then with what the ledger promises and
what limits the neighbour. A cell is what is left of the speed alone.

    python benchmarks/neighbours.py qemu
    python benchmarks/neighbours.py native --hogs disk console --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cerne
from _measure import end_in_time, print_table, seconds

_ROUNDS = 1
_LONGEST = 285.0
"""Seconds after which no further neighbour begins, if it would take longer."""
_SINK = 5000
"""The port of the vsock to which the neighbour writes."""
_WARM_UP = 1.0
_READY = 600.0
_LOOPS = {"qemu": 60_000, "native": 60_000}
_READS = 1500
_ANSWERS = 5

_PROMISED: Mapping[str, object] = {"cpu_guarantee": "1", "disk_weight": 1000}
_LIMITED: Mapping[str, object] = {"cpu_limit": "50%", "disk_rate": "10M", "disk_iops": 500}
_LIMITED_NETWORK: Mapping[str, object] = {"network_rate": "1M"}

_HOGS = {
    "processors": "for each in 1 2; do (while :; do :; done) & done; wait",
    "memory": "while :; do dd if=/dev/zero of=/tmp/x bs=1M count=100; rm /tmp/x; done",
    "disk": "while :; do dd if=/dev/zero of=/dev/vda bs=128k count=400 oflag=direct; done",
    "network": "exec /tmp/flood udp 10.0.2.2",
    "console": "yes 0123456789012345678901234567890123456789 >/dev/console",
    "vsock": f"exec /tmp/flood vsock {_SINK}",
}

Work = Callable[[], float]


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=sorted(_LOOPS))
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--hogs", nargs="*", default=[*_HOGS], choices=[*_HOGS])
    asked = parser.parse_args()
    end_in_time()
    began = time.monotonic()
    with _two_machines(asked.engine) as (good, hog):
        rows = []
        for name in asked.hogs:
            each = time.monotonic()
            if name != "vsock" or _has_vsock(hog):
                rows.append([name, *_row(good, hog, asked.engine, name, asked.rounds)])
            now = time.monotonic()
            if now - began + (now - each) > _LONGEST:
                break
        if left := asked.hogs[len(rows) :]:
            print(f"left out: {', '.join(left)}; measure these alone: --hogs {' '.join(left)}")
    header = ["neighbour takes"]
    for mode in ("no options", "promised, limited"):
        header += [f"{what}, {mode}" for what in ("processor", "disk", "answers")]
    load = " ".join(f"{each:.1f}" for each in os.getloadavg())
    title = (
        f"{asked.engine}: per cent of the speed alone, {asked.rounds} rounds;"
        f" load {load}; {time.monotonic() - began:.0f} s"
    )
    print_table(title, header, rows)


@contextlib.contextmanager
def _two_machines(engine: str) -> Iterator[tuple[cerne.Machine, cerne.Machine]]:
    home = Path(tempfile.mkdtemp(prefix="cerne-n-", dir="/tmp"))
    os.environ |= {"CERNE_HOME": str(home), "CERNE_TEMPLATES": "never"}
    flood = home / "flood"
    source = Path(__file__).with_name("flood.c")
    subprocess.run(["gcc", "-O2", "-static", "-o", flood, source], check=True)
    try:
        with cerne.Manager() as manager:
            made = []
            for name, cpus in (("good", 1), ("hog", 2)):
                spec = cerne.machine_spec(
                    name=name,
                    image="tiny",
                    engine=engine,
                    cpus=cpus,
                    memory="256M",
                    data_disks=["64M"],
                )
                machine = manager.create(spec)
                made.append(machine)
                machine.start(_READY)
            made[1].copy_in(str(flood), "/tmp/flood")
            # Blocks that were never written are read from nowhere.
            made[0].exec(["dd", "if=/dev/zero", "of=/dev/vda", "bs=1M", "count=64"])
            try:
                yield made[0], made[1]
            finally:
                for machine in made:
                    machine.remove(force=True)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _row(
    good: cerne.Machine, hog: cerne.Machine, engine: str, name: str, rounds: int
) -> Iterator[str]:
    limits = {**_LIMITED, **(_LIMITED_NETWORK if engine == "native" else {})}
    for promised, limited in (({}, {}), (_PROMISED, limits)):
        _adjust(good, _PROMISED, promised)
        _adjust(hog, limits, limited)
        yield from _left(_works(good, engine), hog, name, rounds)
    _adjust(good, _PROMISED, {})
    _adjust(hog, limits, {})


def _adjust(
    machine: cerne.Machine, known: Mapping[str, object], wanted: Mapping[str, object]
) -> None:
    machine.adjust(**{name: wanted.get(name, "none") for name in known})  # type: ignore[arg-type]


def _works(good: cerne.Machine, engine: str) -> list[Work]:
    loop = f"i=0; while [ $i -lt {_LOOPS[engine]} ]; do i=$((i+1)); done"
    read = f"dd if=/dev/vda of=/dev/null bs=4k count={_READS} iflag=direct 2>/dev/null"

    def answers() -> float:
        return statistics.median(
            seconds(lambda: good.exec(["true"], check=True)) for _ in range(_ANSWERS)
        )

    return [
        lambda: seconds(lambda: good.exec(["sh", "-c", loop], check=True)),
        lambda: seconds(lambda: good.exec(["sh", "-c", read], check=True)),
        answers,
    ]


def _left(works: Sequence[Work], hog: cerne.Machine, name: str, rounds: int) -> list[str]:
    """What is left of the speed of each work."""
    found: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        alone = [work() for work in works]
        with _running(hog, name):
            beside = [work() for work in works]
        for kept, before, now in zip(found, alone, beside, strict=True):
            kept.append(100 * before / now)
    return [f"{statistics.median(each):.0f} ({min(each):.0f} to {max(each):.0f})" for each in found]


@contextlib.contextmanager
def _running(hog: cerne.Machine, name: str) -> Iterator[None]:
    with contextlib.ExitStack() as sinks:
        if name == "vsock":
            sinks.enter_context(_sink(hog))
        with hog.popen(["sh", "-c", f"({_HOGS[name]}) >/dev/null 2>&1"]) as process:
            time.sleep(_WARM_UP)
            yield
            process.signal(9)
            process.wait(60)


@contextlib.contextmanager
def _sink(hog: cerne.Machine) -> Iterator[None]:
    """Read what the neighbour writes to its host's socket."""
    with hog.vsock_listen(_SINK) as listener:

        def drain() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    while connection.recv(1 << 16):
                        pass

        threading.Thread(target=drain, daemon=True).start()
        yield


def _has_vsock(hog: cerne.Machine) -> bool:
    if hog.vsock:
        return True
    print("vsock is left out: this host has no /dev/vhost-vsock for QEMU")
    return False


if __name__ == "__main__":
    main()
