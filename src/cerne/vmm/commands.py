"""What a machine answers on its control socket: the QMP commands, as functions of the machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cerne.devices.power import POWER_BUTTON
from cerne.vmm.fork import fork, save

if TYPE_CHECKING:
    from cerne.vmm.machine import Machine
    from cerne.vmm.qmp import Command, Request


def commands(machine: Machine) -> dict[str, Command]:
    """The commands by their names."""
    functions: dict[str, Callable[[Machine, Request], object]] = {
        "query-status": _query_status,
        "query-name": _query_name,
        "query-cpus-fast": _query_cpus,
        "stop": _stop,
        "cont": _cont,
        "system_powerdown": _press_power_button,
        "system_reset": _reset,
        "quit": _quit,
        "cerne-save": save,
        "cerne-fork": fork,
    }
    return {name: partial(function, machine) for name, function in functions.items()}


def _query_status(machine: Machine, _: Request) -> object:
    status = "running" if machine.running else "paused"
    return {"status": status, "running": machine.running, "singlestep": False}


def _query_name(machine: Machine, _: Request) -> object:
    return {"name": machine.config.name}


def _query_cpus(machine: Machine, _: Request) -> object:
    return [{"cpu-index": index, "target": "x86_64"} for index in range(machine.config.cpus)]


def _stop(machine: Machine, _: Request) -> object:
    if machine.pause():
        machine.emit("STOP")
    return {}


def _cont(machine: Machine, _: Request) -> object:
    if not machine.running:
        machine.resume()
        machine.emit("RESUME")
    return {}


def _press_power_button(machine: Machine, _: Request) -> object:
    machine.board.power.signal(POWER_BUTTON)
    machine.emit("POWERDOWN")
    return {}


def _reset(machine: Machine, _: Request) -> object:
    machine.end("it was told to reset", "host-qmp-reset")
    return {}


def _quit(machine: Machine, _: Request) -> object:
    machine.end("it was told to quit", "host-qmp-quit")
    return {}
