"""Giving a machine that runs more virtual CPUs.

They are plugged in first, and then its specification has them. If a command is killed in between,
the next one that changes or saves the machine takes the number from its process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import GuestError, GuestTimeoutError, InputError, StateError
from cerne.manager.machines.context import MachineContext
from cerne.manager.store import State
from cerne.units import counted

if TYPE_CHECKING:
    from cerne.guest import GuestAgent
    from cerne.manager.store import Record

_ONLINE = """
cd /sys/devices/system/cpu || exit
number=1 tries=0
while [ "$number" -lt "$1" ]; do
    if read -r online <"cpu$number/online"; then
        if [ "$online" = 1 ] || echo 1 >"cpu$number/online"; then
            number=$((number + 1))
            continue
        fi
        echo "its kernel does not start CPU $number" >&2
        exit 1
    fi
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
        echo "its kernel does not find CPU $number" >&2
        exit 1
    fi
    sleep 0.1
done
"""
"""Brings CPUs online: the kernel itself leaves that to programs."""
_PATIENCE = 120.0
"""Seconds; a kernel waits 10 s for each CPU that does not start."""


def require_growth(context: MachineContext, record: Record, wanted: int) -> None:
    """Refuse a number of CPUs that a machine that runs does not take.

    Raises:
        StateError: it is paused or suspended.
        InputError: it has more CPUs, or has no room for so many.
    """
    name = record.name
    if record.state is not State.RUNNING:
        raise StateError(
            f"{name} is {record.state}, and takes CPUs only while it runs or is stopped",
            hint=f"let it run: cerne {'wake' if record.state is State.SUSPENDED else 'resume'}"
            f" {name}",
            machine=name,
        )
    settle_cpus(context, record)
    present, most = context.spec.cpus, context.spec.most_cpus
    if wanted < present:
        raise InputError(
            f"{name} has {counted(present, 'CPU')}, and gives none back while it runs",
            hint=f"stop it first: cerne stop {name}; then the same command; cerne start {name}",
        )
    if wanted > most:
        raise InputError(
            f"{name} was started with room for {counted(most, 'CPU')}, and cannot grow to {wanted}",
            hint=f"stop it first: cerne stop {name}; cerne set {name} --cpus {wanted} --max-cpus"
            f" {wanted}; cerne start {name}",
        )


def add_cpus(context: MachineContext, record: Record, count: int) -> None:
    """Plug in CPUs until a machine has so many, and have its guest use them.

    Raises:
        EngineError: plugging one in failed.
        GuestError: the guest does not use them; they are there.
    """
    instance = context.instance(record)
    instance.add_cpus(count)
    faults.step("CPUs plugged in")
    if not instance.record.agent:
        return
    said = _bring_online(instance.agent(), count)
    if said:
        raise GuestError(
            f"{record.name} has {counted(count, 'CPU')} now, which its guest does not use: {said}",
            hint=f"see what its kernel says: cerne exec {record.name} dmesg",
            machine=record.name,
        )
    faults.step("CPUs online")


def _bring_online(agent: GuestAgent, count: int) -> str:
    """Have a guest use so many CPUs; why it does not, if so."""
    try:
        done = agent.run(["sh", "-c", _ONLINE, "sh", str(count)], timeout=_PATIENCE)
    except GuestTimeoutError:
        return f"its kernel takes more than {_PATIENCE:g} s to start them"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.status == 0 else (lines or [f"status {done.status}"])[-1]


def settle_cpus(context: MachineContext, record: Record) -> None:
    """Have the specification of a machine that runs say how many CPUs its process has."""
    spec = context.spec
    if spec.max_cpus is None:
        return
    present = context.instance(record).cpus()
    if present != spec.cpus:
        changed = spec.changed(cpus=present)
        context.store.change_spec(
            record,
            changed.model_dump_json(),
            f"cpus {present}",
            shape=(present, changed.memory),
        )
        context.last = context.store.get(context.id)
