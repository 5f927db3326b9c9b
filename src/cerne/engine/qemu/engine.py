"""The engine `qemu`: each machine is a qemu-system-x86_64 process.

Code that starts processes is imported at its use, because most commands only attach to a machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.base import Capabilities, Ending, ShareType
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.instance import QemuInstance
from cerne.units import MIB

if TYPE_CHECKING:
    from cerne.engine.plan import LaunchPlan
    from cerne.engine.record import InstanceRecord
    from cerne.host.process import ProcessIdentity

_VHOST_VSOCK = "/dev/vhost-vsock"


@dataclass(frozen=True, slots=True)
class QemuEngine:
    """Starts machines by QEMU."""

    accelerator: Accelerator
    kept_version: Path | None = field(default=None, compare=False)
    """The file that keeps the version of QEMU; without it each process asks QEMU."""

    @property
    def name(self) -> str:
        """``qemu``."""
        return "qemu"

    @property
    def capabilities(self) -> Capabilities:
        """The host's kernel provides a guest's sockets, if this user may use them."""
        return Capabilities(
            fork=False,
            force_unplug=False,
            firmware=True,
            vsock=_has_vsock(),
            network_rate=False,
        )

    @property
    def overhead(self) -> int:
        """QEMU took 43 to 74 MiB with `tiny`, passt 31 and its supervisor 14 on 28 November 2026.

        Larger guests take more.
        """
        return 160 * MIB

    @property
    def share_type(self) -> ShareType:
        """9p over virtio."""
        return ShareType("9p", "trans=virtio,version=9p2000.L,msize=262144")

    def require(self, plan: LaunchPlan) -> None:
        """Refuse a plan, before anything is created (see `Engine.require`)."""
        from cerne.engine.qemu.launching import require

        require(plan, self.restores)

    def start(self, plan: LaunchPlan) -> QemuInstance:
        """Start the machine's process; return when it answers and its vCPUs run."""
        from cerne.engine.qemu.launching import start

        process = start(plan, self.accelerator, _cid(plan), self.kept_version)
        return self.attach(self.describe(plan, process))

    def attach(self, record: InstanceRecord) -> QemuInstance:
        """The instance of a running machine (see `Engine.attach`)."""
        return QemuInstance(record)

    def describe(self, plan: LaunchPlan, process: ProcessIdentity) -> InstanceRecord:
        """The record of a running machine (see `Engine.describe`)."""
        from cerne.engine.qemu.user_cards import by_passt
        from cerne.engine.record import InstanceRecord

        fingerprint = self._fingerprint(passt=by_passt(plan))
        return InstanceRecord.of(plan, process, self.name, fingerprint, vsock_cid=_cid(plan))

    def fingerprint(self) -> str:
        """This QEMU's series and machine, its accelerator, the processor, and passt."""
        from cerne.network.passt import has_passt

        return self._fingerprint(passt=has_passt())

    def _fingerprint(self, *, passt: bool) -> str:
        from cerne.engine.qemu.launching import fingerprint

        kept = self.kept_version
        return fingerprint(self.accelerator, vsock=_has_vsock(), passt=passt, kept=kept)

    def restores(self, fingerprint: str) -> bool:
        """Whether a machine with this fingerprint can be restored: by releases of one series."""
        from cerne.engine.qemu.launching import restores

        return restores(fingerprint, self.accelerator, vsock=_has_vsock(), kept=self.kept_version)

    def saved_cards(self, directory: Path) -> int | None:
        """How many network cards a saved machine has."""
        from cerne.engine.qemu.saved_cards import saved_cards

        return saved_cards(directory)

    def ending(self, logs: Path) -> Ending:
        """How the process with these logs ended."""
        from cerne.engine.detached import reap
        from cerne.engine.qemu.ending import read_ending

        reap()
        return read_ending(logs)


def _has_vsock() -> bool:
    return os.access(_VHOST_VSOCK, os.R_OK | os.W_OK)


def _cid(plan: LaunchPlan) -> int | None:
    from cerne.network.cid import guest_cid

    return guest_cid(plan.machine_id) if _has_vsock() else None
