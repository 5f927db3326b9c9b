"""Cerne: virtual machines for Python people. The kernel is the hypervisor.

    import cerne

    with cerne.run("debian:12") as vm:
        print(vm.exec(["uname", "-a"]).stdout.decode())

Each name is imported at its first use, so that the command line starts quickly.
"""

from __future__ import annotations

from importlib import import_module

# As in typing, whose import takes longer than all else that some processes of a machine need.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from cerne.client.run import (
        run,
        run_async,
    )
    from cerne.errors import (
        BusyError,
        CapacityError,
        CerneError,
        ChecksumError,
        CommandError,
        ConflictError,
        DamagedError,
        EngineError,
        GuestError,
        GuestPanicError,
        GuestTimeoutError,
        HostError,
        ImageError,
        InputError,
        KvmError,
        MissingProgramError,
        NotAnsweringError,
        NotFoundError,
        NotRunError,
        OperationCancelledError,
        StateError,
        StorageError,
        StreamError,
    )
    from cerne.guest import (
        ExecResult,
        ExecTextResult,
        GuestProcess,
    )
    from cerne.images import (
        Image,
    )
    from cerne.manager import (
        Event,
        Machine,
        Manager,
        Rates,
        State,
        Stats,
    )
    from cerne.manager.asynchronous import (
        AsyncMachine,
    )
    from cerne.manager.machines.machine import (
        Snapshot,
    )
    from cerne.manager.networks import (
        Network,
    )
    from cerne.manager.warm.pool import (
        Pool,
    )
    from cerne.spec.disk import (
        Disk,
    )
    from cerne.spec.machine import (
        MachineSpec,
        machine_spec,
    )
    from cerne.spec.mount import (
        Mount,
    )
    from cerne.spec.named_network import (
        NetworkSpec,
        network_spec,
    )
    from cerne.spec.nic import (
        Nic,
    )
    from cerne.spec.ports import (
        PublishedPort,
    )

_HOMES = {
    "AsyncMachine": "cerne.manager.asynchronous",
    "BusyError": "cerne.errors",
    "CapacityError": "cerne.errors",
    "CerneError": "cerne.errors",
    "ChecksumError": "cerne.errors",
    "CommandError": "cerne.errors",
    "ConflictError": "cerne.errors",
    "DamagedError": "cerne.errors",
    "Disk": "cerne.spec.disk",
    "EngineError": "cerne.errors",
    "Event": "cerne.manager",
    "ExecResult": "cerne.guest",
    "ExecTextResult": "cerne.guest",
    "GuestError": "cerne.errors",
    "GuestPanicError": "cerne.errors",
    "GuestProcess": "cerne.guest",
    "GuestTimeoutError": "cerne.errors",
    "HostError": "cerne.errors",
    "Image": "cerne.images",
    "ImageError": "cerne.errors",
    "InputError": "cerne.errors",
    "KvmError": "cerne.errors",
    "Machine": "cerne.manager",
    "MachineSpec": "cerne.spec.machine",
    "Manager": "cerne.manager",
    "MissingProgramError": "cerne.errors",
    "Mount": "cerne.spec.mount",
    "Network": "cerne.manager.networks",
    "NetworkSpec": "cerne.spec.named_network",
    "Nic": "cerne.spec.nic",
    "NotAnsweringError": "cerne.errors",
    "NotFoundError": "cerne.errors",
    "NotRunError": "cerne.errors",
    "OperationCancelledError": "cerne.errors",
    "Pool": "cerne.manager.warm.pool",
    "PublishedPort": "cerne.spec.ports",
    "Rates": "cerne.manager",
    "Snapshot": "cerne.manager.machines.machine",
    "State": "cerne.manager",
    "StateError": "cerne.errors",
    "Stats": "cerne.manager",
    "StorageError": "cerne.errors",
    "StreamError": "cerne.errors",
    "machine_spec": "cerne.spec.machine",
    "network_spec": "cerne.spec.named_network",
    "run": "cerne.client.run",
    "run_async": "cerne.client.run",
}

__all__ = [
    "AsyncMachine",
    "BusyError",
    "CapacityError",
    "CerneError",
    "ChecksumError",
    "CommandError",
    "ConflictError",
    "DamagedError",
    "Disk",
    "EngineError",
    "Event",
    "ExecResult",
    "ExecTextResult",
    "GuestError",
    "GuestPanicError",
    "GuestProcess",
    "GuestTimeoutError",
    "HostError",
    "Image",
    "ImageError",
    "InputError",
    "KvmError",
    "Machine",
    "MachineSpec",
    "Manager",
    "MissingProgramError",
    "Mount",
    "Network",
    "NetworkSpec",
    "Nic",
    "NotAnsweringError",
    "NotFoundError",
    "NotRunError",
    "OperationCancelledError",
    "Pool",
    "PublishedPort",
    "Rates",
    "Snapshot",
    "State",
    "StateError",
    "Stats",
    "StorageError",
    "StreamError",
    "machine_spec",
    "network_spec",
    "run",
    "run_async",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
