"""The engine `qemu`: each machine is a qemu-system-x86_64 process of its own.

What starts processes is imported where it is used: most commands only attach to a machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.base import Capabilities, Ending, ShareType
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.instance import QemuInstance

if TYPE_CHECKING:
    from cerne.engine.plan import LaunchPlan
    from cerne.engine.record import InstanceRecord
    from cerne.host.process import ProcessIdentity

_VHOST_VSOCK = "/dev/vhost-vsock"


@dataclass(frozen=True, slots=True)
class QemuEngine:
    """Starts machines by QEMU."""

    accelerator: Accelerator

    @property
    def name(self) -> str:
        """``qemu``."""
        return "qemu"

    @property
    def capabilities(self) -> Capabilities:
        """A guest's sockets are the host's kernel's, where that has them for this user."""
        return Capabilities(fork=False, force_unplug=False, firmware=True, vsock=_has_vsock())

    @property
    def share_type(self) -> ShareType:
        """9p over virtio."""
        return ShareType("9p", "trans=virtio,version=9p2000.L,msize=262144")

    def require(self, plan: LaunchPlan) -> None:
        """Refuse what cannot be run here, before anything is created (see `Engine.require`)."""
        from cerne.engine.qemu.launching import require

        require(plan, self.restores)

    def start(self, plan: LaunchPlan) -> QemuInstance:
        """Start the machine's process; return when it answers and its vCPUs run."""
        from cerne.engine.qemu.launching import start

        process = start(plan, self.accelerator, _cid(plan))
        return self.attach(self.describe(plan, process))

    def attach(self, record: InstanceRecord) -> QemuInstance:
        """A machine that runs (see `Engine.attach`)."""
        return QemuInstance(record)

    def describe(self, plan: LaunchPlan, process: ProcessIdentity) -> InstanceRecord:
        """The record of a machine that runs (see `Engine.describe`)."""
        from cerne.engine.record import InstanceRecord

        return InstanceRecord.of(plan, process, self.name, self.fingerprint(), vsock_cid=_cid(plan))

    def fingerprint(self) -> str:
        """This QEMU, the machine that it makes, what runs its guests, and the processor."""
        from cerne.engine.qemu.launching import fingerprint

        return fingerprint(self.accelerator, vsock=_has_vsock())

    def restores(self, fingerprint: str) -> bool:
        """Whether what was saved with this fingerprint can go on here: with this QEMU alone."""
        return fingerprint == self.fingerprint()

    def ending(self, logs: Path) -> Ending:
        """How the process whose logs these are ended."""
        from cerne.engine.detached import reap
        from cerne.engine.qemu.ending import read_ending

        reap()
        return read_ending(logs)


def _has_vsock() -> bool:
    return os.access(_VHOST_VSOCK, os.R_OK | os.W_OK)


def _cid(plan: LaunchPlan) -> int | None:
    from cerne.network.cid import guest_cid

    return guest_cid(plan.machine_id) if _has_vsock() else None
