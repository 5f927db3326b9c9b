"""The engine `native`: each machine is a process of our own VMM (`cerne.vmm`) on /dev/kvm.

Code that starts processes is imported at its use, because most commands only attach to a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.base import Capabilities, Ending, ShareType
from cerne.engine.native.instance import NativeInstance, native_record
from cerne.units import MIB

if TYPE_CHECKING:
    from cerne.engine.plan import LaunchPlan
    from cerne.engine.record import InstanceRecord
    from cerne.host.process import ProcessIdentity


@dataclass(frozen=True, slots=True)
class NativeEngine:
    """Starts machines by our own VMM."""

    emulated: bool
    """Whether this host's kernel emulates guests' kernel code."""

    @property
    def name(self) -> str:
        """``native``."""
        return "native"

    @property
    def capabilities(self) -> Capabilities:
        """The same on every host."""
        return Capabilities(
            fork=True, force_unplug=True, firmware=False, vsock=True, network_rate=True
        )

    @property
    def overhead(self) -> int:
        """Its VMM took 31 to 45 MiB, passt 20 and its supervisor 9 on 28 November 2026."""
        return 72 * MIB

    @property
    def share_type(self) -> ShareType:
        """virtio-fs."""
        return ShareType("virtiofs")

    def require(self, plan: LaunchPlan) -> None:
        """Refuse a plan, before anything is created (see `Engine.require`)."""
        from cerne.engine.native.launching import require

        require(plan, self.restores)

    def start(self, plan: LaunchPlan) -> NativeInstance:
        """Start the machine's process; return when it answers and its vCPUs run."""
        from cerne.engine.native.launching import start

        return self.attach(self.describe(plan, start(plan, emulated=self.emulated)))

    def attach(self, record: InstanceRecord) -> NativeInstance:
        """The instance of a running machine (see `Engine.attach`)."""
        return NativeInstance(record, self.emulated)

    def describe(self, plan: LaunchPlan, process: ProcessIdentity) -> InstanceRecord:
        """The record of a running machine (see `Engine.describe`)."""
        from cerne.engine.native.backends import keeps_memory

        return native_record(plan, process, self.fingerprint(), shares_memory=keeps_memory(plan))

    def fingerprint(self) -> str:
        """The format of saved machines, and the processor that guests see."""
        from cerne.engine.native.launching import fingerprint

        return fingerprint()

    def restores(self, fingerprint: str) -> bool:
        """Whether a machine with this fingerprint can be restored: older formats can."""
        from cerne.engine.native.launching import restores

        return restores(fingerprint)

    def saved_cards(self, directory: Path) -> int | None:
        """How many network cards a saved machine has."""
        from cerne.engine.native.saved_cards import saved_cards

        return saved_cards(directory)

    def ending(self, logs: Path) -> Ending:
        """How the process with these logs ended."""
        from cerne.engine.native.launching import ending

        return ending(logs)
