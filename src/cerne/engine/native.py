"""The engine `native`: each machine is a process of our own VMM (`cerne.vmm`) on /dev/kvm."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cerne.engine.base import DiskPlan, Ending, FirmwareBoot, KernelBoot, LaunchPlan
from cerne.engine.detached import answering, last_line, listening_socket, reap, spawn
from cerne.errors import HostError, InputError
from cerne.host.probe import KVM_DEVICE
from cerne.host.process import ProcessIdentity
from cerne.kvm.kvm import missing_hint, permission_hint
from cerne.vmm.config import VmmConfig

CONFIG_FILE = "vmm.json"
"""In `LaunchPlan.runtime`."""
ENDING_FILE = "ending.json"
"""In `LaunchPlan.logs`."""


@dataclass(frozen=True, slots=True)
class NativeEngine:
    """Starts machines by our own VMM."""

    emulated: bool
    """Whether this host's kernel emulates guests' kernel code."""

    @property
    def name(self) -> str:
        """``native``."""
        return "native"

    def require(self, plan: LaunchPlan) -> None:
        """Refuse what cannot be run here, before anything is created (see `Engine.require`)."""
        if not KVM_DEVICE.exists():
            raise HostError(f"there is no {KVM_DEVICE}", hint=missing_hint())
        if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
            raise HostError(f"{KVM_DEVICE} is not open to this user", hint=permission_hint())
        if isinstance(plan.boot, FirmwareBoot):
            raise InputError(
                f"{plan.name} boots by firmware, which the native engine does not have",
                hint="use --engine qemu",
            )
        if plan.disks:
            raise InputError(
                "the native engine does not read qcow2 disks, which machines have",
                hint="use --engine qemu",
            )
        if any(nic.forwards for nic in plan.nics):
            raise InputError(
                "the native engine has no network yet, and so publishes no ports",
                hint="use --engine qemu",
            )
        if plan.shares:
            raise InputError(
                "the native engine does not mount directories of the host",
                hint="use --engine qemu, or copy them in: cerne cp",
            )

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        """Start the machine's process; return when it answers and its vCPUs run."""
        (plan.logs / ENDING_FILE).unlink(missing_ok=True)
        path = plan.runtime / CONFIG_FILE
        with listening_socket(plan.qmp_socket) as listener:
            _config(plan, listener.fileno(), self.emulated).write(path)
            argv = [sys.executable, "-I", "-m", "cerne.vmm", str(path)]
            pid = spawn(argv, plan.engine_log, [listener.fileno()])
        return answering(pid, plan, "the VMM")

    def fingerprint(self) -> str:
        """See `Engine.fingerprint`."""
        return self.name

    def save(
        self, plan: LaunchPlan, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool
    ) -> None:
        """Save a machine's memory and devices (see `Engine.save`)."""
        raise InputError(f"{plan.name} cannot be saved: its engine does not do that yet")

    def fork(
        self, plan: LaunchPlan, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]
    ) -> list[ProcessIdentity]:
        """Fork a running machine (see `Engine.fork`)."""
        raise InputError(f"{plan.name} cannot be forked", hint="save it and restore it instead")

    def ending(self, logs: Path) -> Ending:
        """How the process whose logs these are ended."""
        reap()
        try:
            said = json.loads((logs / ENDING_FILE).read_text())
            return Ending(orderly=bool(said["orderly"]), reason=str(said["reason"]))
        except (OSError, ValueError, KeyError, TypeError):
            # It says so at its end, and had no time to.
            line = last_line(logs / "engine.log")
            words = f"; it last said: {line}" if line else ""
            return Ending(orderly=False, reason=f"its process was killed{words}")


def _config(plan: LaunchPlan, qmp_descriptor: int, emulated: bool) -> VmmConfig:
    boot = plan.boot
    assert isinstance(boot, KernelBoot)
    return VmmConfig(
        name=plan.name,
        cpus=plan.cpus,
        memory=plan.memory,
        kernel=str(boot.kernel),
        initrd=str(boot.initrd) if boot.initrd else None,
        command_line=f"{boot.command_line} panic=-1 reboot=k",
        qmp_descriptor=qmp_descriptor,
        console_socket=str(plan.console_socket),
        console_log=str(plan.console_log),
        agent_sockets=[str(path) for path in plan.agent_sockets],
        ending=str(plan.logs / ENDING_FILE),
        emulated=emulated,
    )
