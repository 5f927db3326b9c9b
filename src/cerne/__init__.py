"""Cerne: virtual machines for Python people. The kernel is the hypervisor.

    import cerne

    with cerne.run("debian:12") as vm:
        print(vm.exec(["uname", "-a"]).stdout.decode())

Everything here is loaded when it is first used, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cerne.errors import CerneError
    from cerne.manager import Machine, Manager, State
    from cerne.manager.run import run, run_async
    from cerne.manager.snapshot import Snapshot
    from cerne.manager.spec import DataDisk, MachineSpec, Mount, machine_spec
    from cerne.network.ports import PublishedPort

_HOMES = {
    "CerneError": "cerne.errors",
    "DataDisk": "cerne.manager.spec",
    "Machine": "cerne.manager",
    "MachineSpec": "cerne.manager.spec",
    "Manager": "cerne.manager",
    "Mount": "cerne.manager.spec",
    "PublishedPort": "cerne.network.ports",
    "Snapshot": "cerne.manager.snapshot",
    "State": "cerne.manager",
    "machine_spec": "cerne.manager.spec",
    "run": "cerne.manager.run",
    "run_async": "cerne.manager.run",
}

__all__ = [
    "CerneError",
    "DataDisk",
    "Machine",
    "MachineSpec",
    "Manager",
    "Mount",
    "PublishedPort",
    "Snapshot",
    "State",
    "machine_spec",
    "run",
    "run_async",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
