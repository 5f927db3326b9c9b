"""The engine `qemu`: each machine is a qemu-system-x86_64 process of its own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.base import DiskPlan, Ending, FirmwareBoot, LaunchPlan, Nic, ShareType
from cerne.engine.detached import answering, reap, spawn
from cerne.engine.opened import Opened
from cerne.engine.qemu.command_line import (
    MACHINE_VERSION,
    PID_FILE,
    Accelerator,
    command_line,
    disk_device,
)
from cerne.engine.qemu.disks import opened_disk
from cerne.engine.qemu.ending import read_ending
from cerne.engine.qmp.balloon import has_balloon, leave_memory
from cerne.engine.saved import (
    MEMORY_FILE,
    STATE_FILE,
    SavedMachine,
    check,
    file_digest,
    stamp,
)
from cerne.engine.vsock import KernelVsock
from cerne.errors import EngineError, GuestTimeoutError, HostError, InputError
from cerne.host.members import MACHINE
from cerne.host.process import ProcessIdentity
from cerne.host.processor import processor_fingerprint
from cerne.host.programs import require_program
from cerne.network.cid import guest_cid
from cerne.network.ports import require_free
from cerne.network.tap import require_tap
from cerne.storage.locking import require_unlocked
from cerne.vmm.snapshot import memory_digest

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

_BINARY = "qemu-system-x86_64"
_VHOST_VSOCK = "/dev/vhost-vsock"
# sun_path of sockaddr_un, with its end (unix(7)).
_LONGEST_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class QemuEngine:
    """Starts machines by QEMU."""

    accelerator: Accelerator

    @property
    def name(self) -> str:
        """``qemu``."""
        return "qemu"

    def require(self, plan: LaunchPlan) -> None:
        """Refuse what cannot be run here, before anything is created (see `Engine.require`)."""
        require_program(_BINARY)
        _require_short_paths(plan)
        if isinstance(plan.boot, FirmwareBoot) and not plan.disks:
            raise InputError(f"{plan.name} has neither a kernel nor a disk to boot from")
        require_free(plan.forwards)
        for nic in plan.taps:
            require_tap(nic.interface)
        for disk in plan.disks:
            if disk.shared:
                require_unlocked(disk.path, writable=not disk.read_only)
        if plan.saved is not None:
            check(plan.saved, self.restores, plan.memory, memory_digest)

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        """Start the machine's process; return when it answers and its vCPUs run."""
        (plan.logs / PID_FILE).unlink(missing_ok=True)
        with Opened() as opened:
            state = None if plan.saved is None else opened.existing(plan.saved / STATE_FILE)
            argv = command_line(
                require_program(_BINARY),
                plan,
                self.accelerator,
                qmp_descriptor=opened.listening(plan.qmp_socket),
                vsock_cid=guest_cid(plan.machine_id) if _has_vsock() else None,
                disk_descriptors=[opened_disk(disk, opened) for disk in plan.disks],
                # A guest that had none when it was saved would never see it.
                balloon=plan.saved is None or SavedMachine.read(plan.saved).balloon,
                tap_descriptors={nic.mac: opened.tap(nic.interface) for nic in plan.taps},
            )
            pid = spawn(argv, plan.engine_log, opened.descriptors, plan.runtime, MACHINE)
        try:
            return answering(pid, plan, "QEMU", partial(_prepare, plan, state))
        except EngineError:
            # Another process may have taken a port since it was looked at: better words for that.
            require_free(plan.forwards)
            raise

    @property
    def share_type(self) -> ShareType:
        """9p over virtio."""
        return ShareType("9p", "trans=virtio,version=9p2000.L,msize=262144")

    def fingerprint(self) -> str:
        """This QEMU, the machine that it makes, what runs its guests, and the processor."""
        # A package's files have the same size and time on each host that it is installed on.
        program = require_program(_BINARY).stat()
        version = f"{MACHINE_VERSION} {program.st_size}:{program.st_mtime_ns}"
        if _has_vsock():
            version += " vsock"
        return f"qemu {version} {self.accelerator} {processor_fingerprint()}"

    def restores(self, fingerprint: str) -> bool:
        """Whether what was saved with this fingerprint can go on here: with this QEMU alone."""
        return fingerprint == self.fingerprint()

    def save(
        self, plan: LaunchPlan, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool
    ) -> None:
        """Save a machine's memory and devices (see `Engine.save`)."""
        from cerne.engine.qemu.saving import save
        from cerne.engine.qmp import QmpClient
        from cerne.images.files import storage_errors

        with storage_errors(f"saving {plan.name}", directory):
            with Opened() as opened, QmpClient(plan.qmp_socket) as qmp:
                state = opened.new(directory / STATE_FILE)
                fresh = [
                    (disk_device(index, disk), disk, opened_disk(disk, opened))
                    for index, disk in enumerate(disks)
                    # What is shared is only read, and needs no overlay.
                    if resume and not disk.shared
                ]
                apart = plan.memory_file is not None
                balloon = has_balloon(qmp)
                save(qmp, state, fresh, memory_apart=apart, resume=resume)
                os.fsync(state)
            self._describe(plan, directory, balloon=balloon).write(directory)

    def _describe(self, plan: LaunchPlan, directory: Path, *, balloon: bool) -> SavedMachine:
        saved = SavedMachine(
            fingerprint=self.fingerprint(),
            memory=plan.memory,
            state_digest=file_digest(directory / STATE_FILE),
            balloon=balloon,
        )
        memory = plan.memory_file
        if memory is None:
            return saved
        return replace(saved, memory_digest=_digest(memory), memory_stamp=stamp(memory))

    def fork(
        self, plan: LaunchPlan, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]
    ) -> list[ProcessIdentity]:
        """Fork a running machine (see `Engine.fork`)."""
        raise InputError(f"{plan.name} cannot be forked", hint="save it and restore it instead")

    def vsock(self, plan: LaunchPlan) -> KernelVsock | None:
        """The host's kernel's, where that has vhost-vsock."""
        return KernelVsock(guest_cid(plan.machine_id)) if _has_vsock() else None

    def plug(self, plan: LaunchPlan, device: DiskPlan | Nic) -> None:
        """Plug a device into a running machine (see `Engine.plug`)."""
        from cerne.engine.qemu.hotplug import plug_disk, plug_nic
        from cerne.engine.qmp import QmpClient

        with QmpClient(plan.qmp_socket) as qmp:
            if isinstance(device, DiskPlan):
                plug_disk(qmp, device)
            else:
                plug_nic(qmp, device, plan.name)

    def unplug(self, plan: LaunchPlan, slot: int, timeout: float, *, force: bool) -> None:
        """Take a device out of a running machine (see `Engine.unplug`)."""
        from cerne.engine.qemu.hotplug import unplug
        from cerne.engine.qmp import QmpClient

        if force:
            raise InputError(
                "QEMU takes nothing out that the guest has not let go of",
                hint=f"stop the machine first: cerne stop {plan.name}",
            )
        with QmpClient(plan.qmp_socket) as qmp:
            if not unplug(qmp, slot, timeout):
                raise GuestTimeoutError(
                    f"the guest of {plan.name} did not let go of it within {timeout:g} s",
                    hint="unmount it there, and try again: it may let go of it yet",
                )

    def plugged(self, plan: LaunchPlan) -> frozenset[int]:
        """The slots that are taken (see `Engine.plugged`)."""
        from cerne.engine.qemu.hotplug import taken
        from cerne.engine.qmp import QmpClient

        with QmpClient(plan.qmp_socket) as qmp:
            return taken(qmp)

    def ending(self, logs: Path) -> Ending:
        """How the process whose logs these are ended."""
        reap()
        return read_ending(logs)


def _has_vsock() -> bool:
    return os.access(_VHOST_VSOCK, os.R_OK | os.W_OK)


def _prepare(plan: LaunchPlan, state: int | None, qmp: QmpClient) -> None:
    """Do by QMP what its command line does not say; a saved machine's state is inherited."""
    if plan.saved is not None and state is not None:
        from cerne.engine.qemu.saving import go_on

        go_on(qmp, state=state, memory_apart=(plan.saved / MEMORY_FILE).exists())
    if plan.balloon is not None:
        leave_memory(qmp, plan.balloon, plan.name)


def _digest(memory: Path) -> str:
    with memory.open("rb") as file:
        os.fsync(file.fileno())
        return memory_digest(file.fileno())


def _require_short_paths(plan: LaunchPlan) -> None:
    paths = (plan.qmp_socket, plan.console_socket, *plan.agent_sockets)
    longest = max(paths, key=lambda path: len(str(path).encode()))
    if len(str(longest).encode()) > _LONGEST_SOCKET_PATH:
        raise HostError(
            f"{longest} is too long for a Unix socket ({_LONGEST_SOCKET_PATH} bytes at most)",
            hint="set CERNE_HOME, or XDG_RUNTIME_DIR, to a shorter path",
        )
