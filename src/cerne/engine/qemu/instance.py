"""A running machine of the engine `qemu`: the requests to its QEMU.

Code that opens files is imported at its use, because most commands only need the agent.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.plan import DiskPlan, LaunchPlan, Nic
from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.instance import QmpInstance
from cerne.errors import EngineError, GuestTimeoutError, InputError, NotAnsweringError

if TYPE_CHECKING:
    from cerne.engine.base import Instance
    from cerne.engine.saved import SavedMachine
    from cerne.engine.vsock import KernelVsock
    from cerne.spec.resources import Resources

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QemuInstance(QmpInstance):
    """A machine of QEMU."""

    def save(self, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool) -> None:
        """Save its memory and devices (see `Instance.save`)."""
        from cerne.engine.opened import Opened
        from cerne.engine.qemu.command_line import disk_device
        from cerne.engine.qemu.disks import opened_disk
        from cerne.engine.qemu.saving import save
        from cerne.engine.qmp.balloon import has_balloon
        from cerne.engine.qmp.memory import memory_of
        from cerne.engine.saved import STATE_FILE
        from cerne.images.files import storage_errors

        with storage_errors(f"saving {self.record.name}", directory):
            with Opened() as opened, QmpClient(self.record.qmp) as qmp:
                state = opened.new(directory / STATE_FILE)
                fresh = [
                    (disk_device(index, disk), disk, opened_disk(disk, opened))
                    for index, disk in enumerate(disks)
                    # A shared disk is only read, and needs no overlay.
                    if resume and not disk.shared
                ]
                apart = self.record.memory_file is not None
                balloon, memory = has_balloon(qmp), memory_of(qmp)
                save(qmp, state, fresh, memory_apart=apart, resume=resume)
                os.fsync(state)
            described = self._describe(directory, balloon=balloon)
            if memory is not None:
                described = replace(
                    described,
                    memory=memory.size,
                    headroom=memory.most,
                    plugged=memory.requested,
                )
            described.write(directory)

    def break_off_saving(self) -> None:
        """End a migration, which would stop the machine at its end."""
        try:
            with QmpClient(self.record.qmp) as qmp:
                qmp.execute("migrate_cancel")
        except NotAnsweringError:
            raise
        except EngineError as error:
            _log.debug("%s: %s", self.record.name, error.message)

    def fork(self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]) -> list[Instance]:
        """Refuse, because QEMU does not fork (see `Instance.fork`)."""
        raise InputError(
            f"QEMU does not fork {self.record.name}", hint="save it and restore it instead"
        )

    def vsock(self) -> KernelVsock | None:
        """The sockets of the host's kernel, if it was started with them."""
        from cerne.engine.vsock import KernelVsock

        cid = self.record.vsock_cid
        return None if cid is None else KernelVsock(cid)

    def add_cpus(self, count: int) -> None:
        """Plug in virtual CPUs (see `Instance.add_cpus`)."""
        from cerne.engine.qemu.cpus import add_cpus

        with QmpClient(self.record.qmp) as qmp:
            add_cpus(qmp, count)

    def plug(self, device: DiskPlan | Nic) -> None:
        """Plug a device into it (see `Instance.plug`)."""
        from cerne.engine.qemu.hotplug import plug_disk, plug_nic

        with QmpClient(self.record.qmp) as qmp:
            if isinstance(device, DiskPlan):
                plug_disk(qmp, device)
            else:
                plug_nic(qmp, device, self.record)

    def _limit_devices(self, resources: Resources) -> None:
        from cerne.engine.qemu.limits import limit_disks

        with QmpClient(self.record.qmp) as qmp:
            limit_disks(qmp, resources.disk)

    def unplug(self, slot: int, timeout: float, *, force: bool) -> None:
        """Remove a device (see `Instance.unplug`)."""
        from cerne.engine.qemu.hotplug import unplug

        name = self.record.name
        if force:
            raise InputError(
                "QEMU removes no device that the guest has not released",
                hint=f"stop the machine first: cerne stop {name}",
            )
        with QmpClient(self.record.qmp) as qmp:
            if not unplug(qmp, slot, timeout):
                raise GuestTimeoutError(
                    f"the guest of {name} did not release the device within {timeout:g} s",
                    hint="unmount it there, and try again: the guest may still release it",
                )

    def plugged(self) -> frozenset[int]:
        """The slots that are taken (see `Instance.plugged`)."""
        from cerne.engine.qemu.hotplug import taken

        with QmpClient(self.record.qmp) as qmp:
            return taken(qmp)

    def _describe(self, directory: Path, *, balloon: bool) -> SavedMachine:
        from cerne.engine.saved import STATE_FILE, SavedMachine, file_digest, stamp

        saved = SavedMachine(
            fingerprint=self.record.fingerprint,
            memory=self.record.memory,
            state_digest=file_digest(directory / STATE_FILE),
            balloon=balloon,
        )
        memory = self.record.memory_file
        if memory is None:
            return saved
        return replace(saved, memory_digest=_digest(memory), memory_stamp=stamp(memory))


def _digest(memory: Path) -> str:
    from cerne.vmm.memory_file import memory_digest

    with memory.open("rb") as file:
        os.fsync(file.fileno())
        return memory_digest(file.fileno())
