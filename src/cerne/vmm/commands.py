"""The QMP commands of a machine's control socket, as functions of the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cerne.devices.power import POWER_BUTTON
from cerne.errors import InputError
from cerne.vmm.config import disk_from_json, nic_from_json
from cerne.vmm.fork import fork, save
from cerne.vmm.memory_plug import QOM_PATH
from cerne.vmm.peripherals import Limits
from cerne.vmm.qmp import After
from cerne.vmm.runstate import RunState
from cerne.vmm.slot_names import device_name, slot_of

if TYPE_CHECKING:
    from cerne.vmm.machine import Machine
    from cerne.vmm.qmp import Command, Request

_PATIENCE = 8.0
"""Seconds for a disk's request in progress before a command is refused.

Less than a client waits for an answer."""
_LONG_PATIENCE = 45.0
"""The same for commands whose clients wait longer."""

_FASTEST = 1 << 52
_MOST_CPUS = 1 << 12


def commands(machine: Machine) -> dict[str, Command]:
    """The commands by their names."""
    simple: dict[str, Callable[[Machine], object]] = {
        "query-status": _query_status,
        "query-name": _query_name,
        "query-kvm": _query_kvm,
        "query-target": _query_target,
        "query-cpus-fast": _query_cpus,
        "query-blockstats": _query_disks,
        "cerne-query-traffic": _query_traffic,
        "stop": _stop,
        "cont": _cont,
        "system_powerdown": _press_power_button,
        "system_reset": _reset,
        "quit": _quit,
        "cerne-query-walls": _query_walls,
    }
    functions: dict[str, Callable[[Machine, Request], object]] = {
        "cerne-add-cpus": _add_cpus,
        "cerne-plug-disk": _plug_disk,
        "cerne-plug-nic": _plug_nic,
        "device_del": _ask_back,
        "cerne-keep-device": _keep,
        "cerne-pull-device": _pull,
        "cerne-query-devices": _query_devices,
        "cerne-set-limits": _set_limits,
        "query-stats": _query_stats,
        "cerne-save": partial(_while_disks_rest, save),
        "cerne-fork": partial(_while_disks_rest, fork),
    }
    balloon, plug = machine.peripherals.balloon, machine.peripherals.memory_plug
    return {
        **{
            name: partial(_without_arguments, partial(each, machine))
            for name, each in simple.items()
        },
        **{name: partial(function, machine) for name, function in functions.items()},
        "balloon": balloon.qmp_balloon,
        "query-balloon": balloon.qmp_query_balloon,
        "qom-get": balloon.qmp_qom_get,
        "qom-set": partial(_qom_set, machine),
        "query-memory-size-summary": plug.qmp_query_memory_size_summary,
        "query-memory-devices": plug.qmp_query_memory_devices,
    }


def _qom_set(machine: Machine, request: Request) -> object:
    """``qom-set`` of the devices with properties: the memory device, or else the balloon."""
    if request.arguments.text("path", 256) != QOM_PATH:
        return machine.peripherals.balloon.qmp_qom_set(request)
    machine.peripherals.require_growable()
    return machine.peripherals.memory_plug.qmp_qom_set(request)


def _without_arguments(function: Callable[[], object], request: Request) -> object:
    """Make a command of a function that takes no arguments.

    Raises:
        InputError: arguments were given.
    """
    for name in request.arguments:
        raise InputError(f"there is no argument {name!r}")
    return function()


def _while_disks_rest(
    command: Callable[[Machine, Request], object], machine: Machine, request: Request
) -> object:
    """Run a command when no request of a disk is in progress; the vCPUs run until then."""
    return After(
        partial(machine.peripherals.rest, _LONG_PATIENCE), partial(command, machine, request)
    )


def _query_walls(machine: Machine) -> object:
    """``cerne-query-walls``: the walls around the process, and those that the host lacks."""
    return {"up": [*machine.walls.up], "missing": dict(machine.walls.missing)}


def _add_cpus(machine: Machine, request: Request) -> object:
    """``cerne-add-cpus``: plug in vCPUs until there are ``count``."""
    machine.add_cpus(request.arguments.integer("count", _MOST_CPUS, 1))
    return {}


def _plug_disk(machine: Machine, request: Request) -> object:
    """``cerne-plug-disk``: plug in a disk; gets its configuration, slot and descriptors."""
    machine.peripherals.plug_disk(request.take_over(disk_from_json))
    return {}


def _plug_nic(machine: Machine, request: Request) -> object:
    """``cerne-plug-nic``: plug in a network card; gets its configuration, slot and link."""
    machine.peripherals.plug_nic(request.take_over(nic_from_json))
    return {}


def _ask_back(machine: Machine, request: Request) -> object:
    """``device_del`` of QEMU: ask the guest to release a device; DEVICE_DELETED may follow."""
    machine.peripherals.slots.ask_back(_slot(request))
    return {}


def _keep(machine: Machine, request: Request) -> object:
    """``cerne-keep-device``: cancel a ``device_del``."""
    machine.peripherals.slots.keep(_slot(request))
    return {}


def _pull(machine: Machine, request: Request) -> object:
    """``cerne-pull-device``: remove a device, even if the guest uses it."""
    slot = _slot(request)

    def pull() -> object:
        machine.peripherals.slots.pull(slot)
        return {}

    return After(partial(machine.peripherals.rest_in_slot, slot, _PATIENCE), pull)


def _query_devices(machine: Machine, _: Request) -> object:
    """``cerne-query-devices``: the devices that can be removed."""
    return [{"id": device_name(slot), "slot": slot} for slot in machine.peripherals.slots.taken]


def _set_limits(machine: Machine, request: Request) -> object:
    """``cerne-set-limits``: limits a second of all disks and of all cards; null for no limit."""
    arguments = request.arguments
    rates = {
        name: None if arguments.is_none(name) else arguments.integer(name, _FASTEST, 1)
        for name in Limits._fields
    }
    machine.peripherals.set_limits(Limits(**rates))
    return {}


def _slot(request: Request) -> int:
    return slot_of(request.arguments.text("id", 64))


def _query_status(machine: Machine) -> object:
    state = machine.run_state
    return {"status": state.value, "running": state is RunState.RUNNING, "singlestep": False}


def _query_name(machine: Machine) -> object:
    return {"name": machine.config.name}


def _query_kvm(_: Machine) -> object:
    return {"enabled": True, "present": True}


def _query_target(_: Machine) -> object:
    return {"arch": "x86_64"}


def _query_cpus(machine: Machine) -> object:
    return [
        {
            "cpu-index": index,
            "qom-path": f"/machine/cpus/{index}",
            "thread-id": thread,
            "target": "x86_64",
        }
        for index, thread in enumerate(machine.vcpu_threads)
    ]


def _query_disks(machine: Machine) -> object:
    """``query-blockstats`` of QEMU, with the four values that are counted here."""
    return [
        {
            "device": f"disk {index}",
            "stats": {
                "rd_operations": counts.reads,
                "wr_operations": counts.writes,
                "rd_bytes": counts.read,
                "wr_bytes": counts.written,
            },
        }
        for index, counts in enumerate(machine.peripherals.disk_counts())
    ]


def _query_traffic(machine: Machine) -> object:
    """``cerne-query-traffic``: bytes that all network cards moved; null if that is unknown."""
    traffic = machine.peripherals.traffic()
    return None if traffic is None else traffic._asdict()


def _query_stats(machine: Machine, request: Request) -> object:
    """``query-stats`` of QEMU: how often each vCPU left the guest, which is all that it has."""
    if request.arguments.text("target", 64) != "vcpu":
        return []
    return [
        {
            "provider": "kvm",
            "qom-path": f"/machine/cpus/{index}",
            "stats": [{"name": "exits", "value": exits}],
        }
        for index, vcpu in enumerate(machine.board.vcpus)
        if (exits := vcpu.exit_count) is not None
    ]


def _stop(machine: Machine) -> object:
    def stop() -> object:
        if machine.pause():
            machine.emit("STOP")
        return {}

    return After(partial(machine.peripherals.rest, _PATIENCE), stop)


def _cont(machine: Machine) -> object:
    if machine.run_state is not RunState.RUNNING:
        machine.resume()
        machine.emit("RESUME")
    return {}


def _press_power_button(machine: Machine) -> object:
    machine.require("to press its power button", RunState.RUNNING, RunState.PAUSED)
    machine.board.power.signal(POWER_BUTTON)
    machine.emit("POWERDOWN")
    return {}


def _reset(machine: Machine) -> object:
    machine.require("to reset it", RunState.RUNNING, RunState.PAUSED)
    machine.reset("host-qmp-system-reset")
    return {}


def _quit(machine: Machine) -> object:
    machine.end("it was told to quit", "host-qmp-quit")
    return {}
