"""The guest that measures from inside, on our VMM and on QEMU in the same run.

`guest/bench.c` runs in ring 3, which every host runs at its own speed, and counts the processor's
time stamps. QEMU runs it by the same /dev/kvm.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from _measure import Sample
from _native import Machines
from cerne.engine.plan import DiskPlan, KernelBoot, LaunchPlan, Nic
from cerne.engine.qmp import QmpClient
from cerne.host.programs import require_program
from cerne.kvm.kvm import Kvm
from cerne.units import MIB

MEMORY = 128 * MIB
_SOURCES = Path(__file__).with_name("guest")
_FLAGS = (
    *("-std=gnu11", "-O2", "-ffreestanding", "-nostdlib", "-static", "-mgeneral-regs-only"),
    *("-mno-red-zone", "-fno-pic", "-no-pie", "-fno-stack-protector", "-fcf-protection=none"),
    *("-fno-asynchronous-unwind-tables", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
    # Without an entry of its own it is entered by PVH, on both sides.
    *("-Wl,--no-warn-rwx-segments", "-Wl,-e,0", f"-Wl,-T,{_SOURCES / 'guest.lds'}"),
)
_TIMEOUT = 120.0
_SAID = re.compile(rb"E([0-9a-f]{16})\n")


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run in a guest took."""

    seconds: float
    cpu: float
    """Seconds of processor time of the monitor beside its vCPU, and of its helpers."""


def rate_and_cost(count: int, runs: Sequence[Measured]) -> str:
    """Thousands of operations a second, and microseconds of processor time for each."""
    rate = Sample(tuple(count / run.seconds / 1000 for run in runs))
    cost = Sample(tuple(run.cpu / count * 1e6 for run in runs))
    return f"{rate.text(digits=2)}; {cost.median:.0f}"


def built(path: Path) -> Path:
    """The guest, compiled to this path."""
    sources = [str(_SOURCES / name) for name in ("start.S", "bench.c")]
    subprocess.run(["gcc", *_FLAGS, "-o", str(path), *sources], check=True)
    return path


class Guests:
    """Runs the guest; none is left at the end."""

    def __init__(self, made: Machines) -> None:
        self._made = made
        self.kernel = built(made.home / "bench")
        self._ticks_per_second = ticks_per_second()

    def native(
        self, command: str, disks: Sequence[DiskPlan] = (), nics: Sequence[Nic] = ()
    ) -> Measured:
        """Measure on our VMM."""
        plan = self._made.plan(KernelBoot(self.kernel, None, command), MEMORY)
        plan = replace(plan, disks=tuple(disks), nics=tuple(nics))
        process = self._made.start(plan)
        try:
            pids = [process.pid, *_storage_daemons()]
            return self._measured(plan.console_log, pids, plan.qmp_socket)
        finally:
            self._made.end([process])

    def qemu(
        self, command: str, *arguments: str, machine: str = "q35", helpers: Sequence[int] = ()
    ) -> Measured:
        """Measure on QEMU."""
        with qemu(self._made, self.kernel, command, *arguments, machine=machine) as (process, plan):
            return self._measured(plan.console_log, [process.pid, *helpers], plan.qmp_socket)

    def wait_until_measured(self, log: Path) -> None:
        """Wait until the guest begins what it measures."""
        _wait_for(log, b"S")

    def _measured(self, log: Path, pids: Sequence[int], qmp: Path) -> Measured:
        _wait_for(log, b"S")
        begun = _cpu_beside_vcpus(pids, qmp)
        said = _SAID.search(_wait_for(log, b"\n"))
        if said is None:
            raise SystemExit(f"the guest said {log.read_bytes()!r}")
        used = _cpu_beside_vcpus(pids, qmp) - begun
        return Measured(int(said[1], 16) / self._ticks_per_second, used)


@contextlib.contextmanager
def qemu(
    made: Machines, kernel: Path, command: str, *arguments: str, machine: str
) -> Iterator[tuple[subprocess.Popen[bytes], LaunchPlan]]:
    """A machine of QEMU's with KVM, of the least that it can be."""
    plan = made.plan(KernelBoot(kernel, None, command), MEMORY)
    process = subprocess.Popen(
        [
            *(str(require_program("qemu-system-x86_64")), "-M", machine),
            *("-accel", "kvm", "-cpu", "host,arch-capabilities=off", "-m", str(MEMORY // MIB)),
            *("-kernel", str(kernel), "-append", command, "-nodefaults", "-no-user-config"),
            *("-display", "none", "-no-reboot", "-serial", f"file:{plan.console_log}"),
            *("-qmp", f"unix:{plan.qmp_socket},server=on,wait=off", *arguments),
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process, plan
    finally:
        process.kill()
        process.wait()


def _wait_for(log: Path, ending: bytes) -> bytes:
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        if log.exists() and ending in (said := log.read_bytes()):
            return said
        time.sleep(0.002)
    raise SystemExit(f"the guest did not get so far: {log.read_bytes()!r}")


def _storage_daemons() -> list[int]:
    """Those that serve disks of the machines that were started here, each under its supervisor."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_bytes().partition(b"(")[2].rpartition(b")")
            parents[int(entry.name)] = (name, int(rest.split()[1]))
    return [
        pid
        for pid, (name, parent) in parents.items()
        if name.startswith(b"qemu-storage") and parents.get(parent, (b"", 0))[1] == os.getpid()
    ]


def ticks_per_second() -> int:
    """How quickly a guest's time stamps count."""
    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return vcpu.get_tsc_khz() * 1000


def _cpu_beside_vcpus(pids: Sequence[int], qmp: Path) -> float:
    with QmpClient(qmp) as client:
        vcpus = client.execute("query-cpus-fast")
    assert isinstance(vcpus, list)
    threads = [(pids[0], int(vcpu["thread-id"])) for vcpu in vcpus]
    total = sum(_cpu(Path(f"/proc/{pid}/stat")) for pid in pids)
    return total - sum(_cpu(Path(f"/proc/{pid}/task/{thread}/stat")) for pid, thread in threads)


def _cpu(stat: Path) -> float:
    fields = stat.read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
