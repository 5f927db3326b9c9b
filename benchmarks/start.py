"""How long a machine takes: typed to returned, started to ready, a command in it; and its memory.

Beside ours stands plain qemu-system-x86_64, started by hand with the same kernel, initramfs, disk
and parameters, in turn with ours in the same run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _measure import Sample, end_in_time, in_turn, print_table, seconds
from cerne.engine.qemu import QemuEngine
from cerne.engine.qemu.command_line import PID_FILE, command_line
from cerne.engine.select import choose_engine
from cerne.guest import GuestAgent
from cerne.host.programs import require_program
from cerne.manager import Home, Machine, Manager
from cerne.manager.machines.plan import launch_plan
from cerne.manager.recovery import discard
from cerne.spec.machine import machine_spec
from cerne.units import MIB

_CERNE = str(Path(sys.executable).with_name("cerne"))
_RUNS = 5
_MEMORY = 512 * MIB
_READY_TIMEOUT = 120.0
_EXECS = 100
_TOGETHER = 10
_DEFINED = 200


def main() -> None:
    """Measure in a home of its own, and print the tables."""
    end_in_time()
    with tempfile.TemporaryDirectory(prefix="cerne-", dir="/tmp") as home:
        os.environ |= {"CERNE_HOME": home, "CERNE_TEMPLATES": "never"}
        manager = Manager()
        try:
            for image in ("tiny", "debian:12-minimal"):
                manager.ensure_image(image)
                _compare(manager, image)
            _command(manager)
            _many(manager)
        finally:
            for machine in manager.machines():
                machine.remove(force=True)


def _compare(manager: Manager, image: str) -> None:
    plain = manager.create(machine_spec(name=manager.free_name(), image=image, memory=_MEMORY))
    ours = manager.create(machine_spec(name=manager.free_name(), image=image, memory=_MEMORY))
    beyond: dict[str, list[int]] = {"cerne": [], "plain QEMU": []}
    typed, started, by_hand = in_turn(
        _RUNS,
        lambda: _typed(image),
        lambda: _started(ours, beyond["cerne"]),
        lambda: _by_hand(manager, plain, beyond["plain QEMU"]),
    )
    rows = [
        ("cerne run -- true: typed to returned", typed.text(digits=2)),
        ("cerne: start to agent ready", started.text(digits=2)),
        ("plain QEMU: start to agent ready", by_hand.text(digits=2)),
    ]
    print_table(f"{image}: seconds, median (least to most) of {_RUNS}", ("what", "s"), rows)
    print(f"\nTyped to returned, over plain QEMU: {typed.median - by_hand.median:.2f} s")
    sizes = [(name, Sample(tuple(values)).text(1 / MIB, 0)) for name, values in beyond.items()]
    print_table(f"{image}: the process's memory beyond the guest's", ("what", "MiB"), sizes)
    plain.remove(force=True)
    ours.remove(force=True)


def _typed(image: str) -> float:
    command = [_CERNE, "run", "--rm", "--memory", "512M", image, "--", "true"]
    return seconds(lambda: subprocess.run(command, check=True))


def _started(machine: Machine, beyond: list[int]) -> float:
    taken = seconds(machine.start)
    process = machine.record.process
    assert process is not None
    beyond.append(_beyond_guest_memory(process.pid))
    machine.kill()
    return taken


def _by_hand(manager: Manager, machine: Machine, beyond: list[int]) -> float:
    """Start QEMU with the same arguments, with nothing of Cerne around but the agent's client."""
    image = manager.images.get(machine.record.digest)
    plan = launch_plan(manager.home, machine.record, machine.spec, image, {})
    discard(plan.runtime)
    plan.runtime.mkdir()
    (plan.logs / PID_FILE).parent.mkdir(exist_ok=True)
    engine = choose_engine("qemu", Home.of_this_user().guest_speed)
    assert isinstance(engine, QemuEngine)
    accelerator = engine.accelerator
    argv = command_line(require_program("qemu-system-x86_64"), plan, accelerator, 0)
    control = argv.index("-mon")
    # Without the control socket, which is an inherited descriptor.
    argv = argv[: control - 2] + argv[control + 2 :]
    begun = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not plan.agent_sockets[-1].exists():
            if process.poll() is not None:
                assert process.stderr is not None
                raise SystemExit(f"QEMU did not start: {process.stderr.read().decode()}")
            time.sleep(0.001)
        GuestAgent(plan.agent_sockets).wait_ready(_READY_TIMEOUT)
        taken = time.perf_counter() - begun
        beyond.append(_beyond_guest_memory(process.pid))
        process.send_signal(signal.SIGKILL)
    discard(plan.runtime)
    return taken


def _beyond_guest_memory(pid: int) -> int:
    """Resident bytes of a process's mappings, but for the one that is as large as the guest."""
    total = size = 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Size":
            size = int(value.split()[0]) * 1024
        elif name == "Rss" and size != _MEMORY:
            total += int(value.split()[0]) * 1024
    return total


def _command(manager: Manager) -> None:
    machine = manager.run(machine_spec(name=manager.free_name(), memory=_MEMORY))
    agent = machine.agent()
    agent.run(["true"])
    trips = Sample(tuple(seconds(lambda: agent.run(["true"])) for _ in range(_EXECS)))
    rows = [("exec of true, session and all", trips.text(1000, 2))]
    print_table(f"A command in tiny: ms, median (least to most) of {_EXECS}", ("what", "ms"), rows)
    machine.remove(force=True)


def _many(manager: Manager) -> None:
    names = [f"together{number}" for number in range(_TOGETHER)]

    def start_all() -> None:
        commands = [
            subprocess.Popen(
                [_CERNE, "run", "--detach", "--memory", "128M", "--name", name, "tiny"],
                stdout=subprocess.DEVNULL,
            )
            for name in names
        ]
        try:
            ended = [command.wait() for command in commands]
            if any(ended):
                raise SystemExit("a machine did not start")
        finally:
            for command in commands:
                command.kill()
                command.wait()

    started = seconds(start_all)
    removed = seconds(lambda: subprocess.run([_CERNE, "rm", "--force", *names], check=True))
    for number in range(_DEFINED):
        manager.create(machine_spec(name=f"defined{number}", memory=_MEMORY))
    listing = [_CERNE, "ls", "--json"]
    listed = [
        seconds(lambda: subprocess.run(listing, check=True, stdout=subprocess.DEVNULL))
        for _ in range(_RUNS)
    ]
    rows = [
        (f"{_TOGETHER} machines started at once, all ready", f"{started:.2f}"),
        (f"{_TOGETHER} machines removed by one command", f"{removed:.2f}"),
        (f"{_DEFINED} defined machines listed", Sample(tuple(listed)).text(digits=2)),
    ]
    print_table("Many machines: seconds", ("what", "s"), rows)


if __name__ == "__main__":
    main()
