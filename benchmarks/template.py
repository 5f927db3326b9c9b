"""How long a machine of the QEMU engine takes from a template, against a cold boot and plain QEMU.

Plain QEMU is started by hand on the very same files, and told by its standard input to go on: what
ours takes longer is the check of the files, the control socket and Python.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _measure import Sample, end_in_time, in_turn, print_table, private_memory, seconds
from cerne.engine.plan import KernelBoot, LaunchPlan, UserNic
from cerne.engine.qemu import QemuEngine
from cerne.engine.qemu.command_line import PID_FILE, command_line
from cerne.engine.saved import MEMORY_FILE, STATE_FILE
from cerne.engine.select import choose_engine
from cerne.guest import GuestAgent
from cerne.host.process import ProcessIdentity
from cerne.host.programs import require_program
from cerne.images import Image
from cerne.manager import Home, Manager
from cerne.units import GIB, MIB

_CERNE = str(Path(sys.executable).with_name("cerne"))
_RUNS = 5
_SIZES = (256 * MIB, GIB, 4 * GIB)
_READY_TIMEOUT = 120.0
_MAC = "02:00:00:00:00:01"


def main() -> None:
    """Measure in a home of its own, and print the tables."""
    end_in_time()
    with tempfile.TemporaryDirectory(prefix="cerne-", dir="/tmp") as home:
        os.environ["CERNE_HOME"] = home
        image = Manager().ensure_image("tiny")
        engine = choose_engine("qemu", Home.of_this_user().guest_speed)
        assert isinstance(engine, QemuEngine)
        rows = [_Bench(engine, image, Path(home) / "bench", size).row() for size in _SIZES]
        header = ("memory", "cold boot", "plain QEMU, restored", "from a template", "private MiB")
        print_table(f"tiny: seconds to the agent's answer, median of {_RUNS}", header, rows)
        _typed()


class _Bench:
    """The tiny image with so much memory: booted, saved, and started from what was saved."""

    def __init__(self, engine: QemuEngine, image: Image, directory: Path, memory: int) -> None:
        self._engine = engine
        self._image = image
        self._directory = directory
        self._memory = memory
        self._saved = directory / "saved"
        self._private: list[float] = []

    def row(self) -> tuple[str, ...]:
        """Measure; a row of the table."""
        self._directory.mkdir()
        self._save()
        measured = in_turn(_RUNS, self._cold, self._by_hand, self._from_template)
        shutil.rmtree(self._directory)
        times = (sample.text(digits=3) for sample in measured)
        return (f"{self._memory // MIB} MiB", *times, Sample(tuple(self._private)).text())

    @contextmanager
    def _plan(self) -> Iterator[LaunchPlan]:
        boot = self._image.boot
        assert boot is not None
        with tempfile.TemporaryDirectory(dir=self._directory) as runtime:
            path = Path(runtime)
            kernel = KernelBoot(boot.kernel, boot.initrd, boot.command_line)
            nics = (UserNic(_MAC),)
            yield LaunchPlan("m", "bench", 1, self._memory, kernel, (), nics, (), path, path)

    def _save(self) -> None:
        self._saved.mkdir()
        with self._plan() as plan:
            plan = dataclasses.replace(plan, memory_file=self._saved / MEMORY_FILE)
            instance = self._engine.start(plan)
            GuestAgent(plan.agent_sockets).wait_ready(_READY_TIMEOUT)
            instance.save(self._saved, (), resume=False)
            _kill(instance.process)

    def _cold(self) -> float:
        with self._plan() as plan:
            return self._started(plan)

    def _from_template(self) -> float:
        with self._plan() as plan:
            return self._started(dataclasses.replace(plan, saved=self._saved), self._private)

    def _started(self, plan: LaunchPlan, private: list[float] | None = None) -> float:
        begun = time.perf_counter()
        self._engine.require(plan)
        process = self._engine.start(plan).process
        GuestAgent(plan.agent_sockets).wait_ready(_READY_TIMEOUT)
        taken = time.perf_counter() - begun
        if private is not None:
            private.append(private_memory(process.pid) / MIB)
        _kill(process)
        return taken

    def _by_hand(self) -> float:
        with self._plan() as plan, (self._saved / STATE_FILE).open("rb") as state:
            restored = dataclasses.replace(plan, saved=self._saved)
            (plan.logs / PID_FILE).parent.mkdir(exist_ok=True)
            binary = require_program("qemu-system-x86_64")
            argv = command_line(binary, restored, self._engine.accelerator, 0)
            # Without the control socket, which is an inherited descriptor.
            control = argv.index("-mon")
            argv = argv[: control - 2] + argv[control + 2 :]
            return _until_ready([*argv, "-qmp", "stdio"], plan, state.fileno())


def _until_ready(argv: list[str], plan: LaunchPlan, descriptor: int) -> float:
    begun = time.perf_counter()
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[descriptor],
    ) as process:
        _go_on(process, descriptor)
        GuestAgent(plan.agent_sockets).wait_ready(_READY_TIMEOUT)
        taken = time.perf_counter() - begun
        process.send_signal(signal.SIGKILL)
    return taken


def _go_on(process: subprocess.Popen[bytes], descriptor: int) -> None:
    """Speak the least QMP that restores a machine."""
    assert process.stdin is not None
    assert process.stdout is not None
    capabilities = [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]
    for command, arguments in (
        ("qmp_capabilities", {}),
        ("migrate-set-capabilities", {"capabilities": capabilities}),
        ("migrate-incoming", {"uri": f"fd:{descriptor}"}),
    ):
        order = {"execute": command, "arguments": arguments}
        process.stdin.write(json.dumps(order).encode())
    process.stdin.flush()
    if not any(b'"completed"' in line for line in process.stdout):
        raise SystemExit("plain QEMU did not go on")
    process.stdin.write(b'{"execute": "cont"}')
    process.stdin.flush()


def _kill(process: ProcessIdentity) -> None:
    process.send(signal.SIGKILL)
    process.wait(_READY_TIMEOUT)


def _typed() -> None:
    """The command line's, from typing to its return."""
    subprocess.run([_CERNE, "image", "warm", "tiny"], check=True, stdout=subprocess.DEVNULL)
    run = [_CERNE, "run", "--rm"]
    cold, warm = in_turn(
        _RUNS,
        lambda: seconds(lambda: subprocess.run([*run, "--cold", "tiny", "--", "true"], check=True)),
        lambda: seconds(lambda: subprocess.run([*run, "tiny", "--", "true"], check=True)),
    )
    rows = [
        ("cerne run --rm --cold tiny -- true", cold.text(digits=2)),
        ("cerne run --rm tiny -- true, from a template", warm.text(digits=2)),
    ]
    print_table("Typed to returned", ("what", "s"), rows)


if __name__ == "__main__":
    main()
