"""A running machine of the engine `native`: the requests to its VMM.

Code that opens files and starts programs is imported at its use, because most commands only need
the agent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.plan import DiskPlan, LaunchPlan, Nic
from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.answers import mapping, mappings
from cerne.engine.qmp.instance import QmpInstance
from cerne.errors import EngineError, GuestTimeoutError, InputError, StorageError

if TYPE_CHECKING:
    from cerne.devices.state import SavedState
    from cerne.engine.base import Instance
    from cerne.engine.opened import Opened
    from cerne.engine.record import InstanceRecord
    from cerne.engine.vsock import UnixVsock
    from cerne.host.process import ProcessIdentity
    from cerne.spec.resources import Resources
    from cerne.vmm.config import DiskConfig, NicConfig

_TIMEOUT = 60.0
_MOST_MEMORY = 1 << 52
_LARGEST_REPORT = 4096
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NativeInstance(QmpInstance):
    """A machine of our own VMM."""

    emulated: bool
    """Whether this host's kernel emulates guests' kernel code; its children need this too."""

    def save(self, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool) -> None:
        """Save its memory and devices (see `Instance.save`)."""
        from cerne.devices.state import plain
        from cerne.engine.native.configuration import disk_configuration
        from cerne.engine.opened import Opened
        from cerne.engine.saved import MEMORY_FILE, STATE_FILE, SavedMachine, file_digest, stamp
        from cerne.host.members import SAVER

        require_own_memory(self.record.name, shares_memory=self.record.shares_memory)
        if resume:
            _expect_writes(disks)
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as report:
            with Opened(sent=True) as opened:
                arguments: dict[str, object] = {
                    "state": opened.new(directory / STATE_FILE),
                    "memory": opened.new(directory / MEMORY_FILE),
                    "report": opened.take(writing),
                    "registration": opened.registration(
                        self.record.runtime, SAVER, confined=True, user=self.process.user()
                    ),
                    "disks": [plain(disk_configuration(disk, opened)) for disk in disks if resume],
                    "resume": resume,
                }
                answer = self._execute("cerne-save", arguments, opened)
            # The pipe ends when the writing child has closed it, or was killed.
            outcome = _outcome(report.read(_LARGEST_REPORT))
        if "error" in outcome:
            why = f"saving {self.record.name} failed: {outcome['error']}"
            # The writing child reports the kernel's answer only as text.
            if any(os.strerror(number) in why for number in (errno.ENOSPC, errno.EDQUOT)):
                raise StorageError(why, hint=f"free some space: df -h {directory.parent}")
            raise EngineError(why)
        SavedMachine(
            fingerprint=self.record.fingerprint,
            # A VMM of before that says nothing plugs no memory.
            memory=answer.integer("memory", _MOST_MEMORY)
            if "memory" in answer
            else self.record.memory,
            state_digest=file_digest(directory / STATE_FILE),
            memory_digest=str(outcome["digest"]),
            memory_stamp=stamp(directory / MEMORY_FILE),
        ).write(directory)

    def break_off_saving(self) -> None:
        """Do nothing: a child of the VMM saves, and never stops the machine afterwards."""

    def fork(self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]) -> list[Instance]:
        """Fork it (see `Instance.fork`)."""
        from cerne.engine.detached import answering
        from cerne.engine.native.turns import turns
        from cerne.host.members import Members

        require_own_memory(self.record.name, shares_memory=self.record.shares_memory)
        pids: list[int] = []
        try:
            several = turns(disks, children)
            if len(several) == 1:
                _expect_writes(disks)
            with self._held(len(several) > 1):
                for turn in several:
                    self._fork(disks, turn, pids)
            return [
                self._child(child, answering(pid, child, "the VMM"))
                for pid, child in zip(pids, children, strict=True)
            ]
        except BaseException:
            for child in children:
                Members(child.runtime).end()
            raise

    def vsock(self) -> UnixVsock | None:
        """The Unix sockets in a directory of the machine."""
        from cerne.engine.vsock import UnixVsock

        directory = self.record.vsock_directory
        return None if directory is None else UnixVsock(directory)

    def add_cpus(self, count: int) -> None:
        """Plug in virtual CPUs (see `Instance.add_cpus`)."""
        with QmpClient(self.record.qmp) as qmp:
            qmp.execute("cerne-add-cpus", {"count": count})

    def plug(self, device: DiskPlan | Nic) -> None:
        """Plug a device into it (see `Instance.plug`)."""
        from cerne.devices.state import plain
        from cerne.engine.native.backends import require_readable
        from cerne.engine.native.configuration import disk_configuration, nic_configuration
        from cerne.engine.opened import Opened
        from cerne.engine.supervised import require_served

        with Opened(sent=True) as opened:
            config: DiskConfig | NicConfig
            if isinstance(device, DiskPlan):
                require_readable(device)
                command, config = "cerne-plug-disk", disk_configuration(device, opened)
            else:
                command, config = "cerne-plug-nic", nic_configuration(self.record, device, opened)
                require_served(opened.reports)
            with self._client() as qmp:
                qmp.execute(command, plain(config), descriptors=opened.descriptors)

    def _limit_devices(self, resources: Resources) -> None:
        disk, network = resources.disk, resources.network
        limits = {
            "iops": disk.iops,
            "bps": disk.rate,
            "receive": network.receive,
            "send": network.send,
        }
        with self._client() as qmp:
            qmp.execute("cerne-set-limits", limits)

    def unplug(self, slot: int, timeout: float, *, force: bool) -> None:
        """Remove a device (see `Instance.unplug`)."""
        from cerne.engine.qmp.unplugging import ask_back

        with self._client() as qmp:
            if force:
                _unless_gone(qmp, "cerne-pull-device", slot)
            elif not ask_back(qmp, slot, timeout) and _unless_gone(qmp, "cerne-keep-device", slot):
                raise GuestTimeoutError(
                    f"the guest of {self.record.name} did not release the device "
                    f"within {timeout:g} s",
                    hint="unmount it there, or remove it without asking the guest: --force",
                )

    def plugged(self) -> frozenset[int]:
        """The slots that are taken (see `Instance.plugged`)."""
        from cerne.engine.qmp.unplugging import slots_among

        with self._client() as qmp:
            said = qmp.execute("cerne-query-devices")
        return slots_among(str(device.get("id")) for device in mappings(said))

    def _fork(
        self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan], pids: list[int]
    ) -> None:
        """Fork children in one request, and add their pids to `pids`."""
        from cerne.devices.state import plain
        from cerne.engine.native.configuration import child_configuration, disk_configuration
        from cerne.engine.opened import Opened
        from cerne.engine.supervised import require_served
        from cerne.host.members import MACHINE, Members

        with Opened(sent=True) as opened:
            configs = [
                child_configuration(child, opened, emulated=self.emulated, parent=self.process)
                for child in children
            ]
            arguments: dict[str, object] = {
                "children": [config.to_json() for config in configs],
                "disks": [plain(disk_configuration(disk, opened)) for disk in disks],
            }
            answer = self._execute("cerne-fork", arguments, opened)
        forked = answer.integers("pids", 1 << 22)
        if len(forked) != len(children):
            raise EngineError(f"the VMM forked {len(forked)} of {len(children)} machines")
        for pid, child in zip(forked, children, strict=True):
            # It may be in an attacker's hands, and name any process.
            if pid not in [each.pid for each in Members(child.runtime).alive(MACHINE)]:
                raise EngineError(f"process {pid} is not registered as {child.name}")
        pids += forked
        require_served(opened.reports)

    def _child(self, plan: LaunchPlan, process: ProcessIdentity) -> NativeInstance:
        # Its process runs the parent's version of the VMM, not this command's.
        record = native_record(plan, process, self.record.fingerprint, shares_memory=False)
        return NativeInstance(record, self.emulated)

    @contextlib.contextmanager
    def _held(self, several: bool) -> Iterator[None]:
        """Pause it if it is forked in several turns, so that all children have the same state."""
        if not several:
            yield
            return
        with self._client() as qmp:
            ran = qmp.status() == "running"
            qmp.stop()
            try:
                yield
            finally:
                if ran:
                    qmp.cont()

    def _execute(self, command: str, arguments: dict[str, object], opened: Opened) -> SavedState:
        from cerne.devices.state import SavedState

        with self._client() as qmp:
            answer = qmp.execute(command, arguments, descriptors=opened.descriptors)
        said = SavedState("the answer of the VMM", mapping(answer))
        microseconds = said.integer("pause", 1 << 62) // 1000
        _log.debug("%s paused %s for %d us", command, self.record.name, microseconds)
        return said

    def _client(self) -> QmpClient:
        return QmpClient(self.record.qmp, _TIMEOUT, stopped=self.process.stopped)


def _outcome(report: bytes) -> dict[str, object]:
    """What the process that saves says at its end; it may be in an attacker's hands."""
    if not report:
        return {"error": "it was killed"}
    try:
        said = json.loads(report)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not {"error", "digest"} & said.keys():
        return {"error": "its report is not readable"}
    return said


def native_record(
    plan: LaunchPlan, process: ProcessIdentity, fingerprint: str, *, shares_memory: bool
) -> InstanceRecord:
    """The record of a machine that was started or forked with this plan."""
    from cerne.engine.record import InstanceRecord

    return InstanceRecord.of(
        plan,
        process,
        "native",
        fingerprint,
        vsock_directory=plan.vsock_directory,
        shares_memory=shares_memory,
    )


def _expect_writes(disks: Sequence[DiskPlan]) -> None:
    """Spare the guest's next write the wait for a mark in its new overlay.

    Not for overlays with which a machine is forked twice: the end of their first use clears it.
    """
    from cerne.storage.overlay import expect_writes

    for disk in disks:
        if disk.format == "qcow2" and not disk.read_only:
            expect_writes(disk.path)


def require_own_memory(name: str, *, shares_memory: bool) -> None:
    """Refuse a machine with backends, whose state is not saved, and which share its memory.

    Raises:
        InputError: the machine has backends.
    """
    if shares_memory:
        raise InputError(
            f"the engine neither saves nor forks {name}: other processes serve its devices, or its"
            " memory is in hugepages",
            hint="make it without --memory-hugepages and --mount, and copy files into it: cerne cp",
        )


def _unless_gone(qmp: QmpClient, command: str, slot: int) -> bool:
    """Send a command about a device; return False if it is gone."""
    from cerne.engine.qmp.session import QmpCommandError
    from cerne.vmm.slot_names import device_name

    try:
        qmp.execute(command, {"id": device_name(slot)})
    except QmpCommandError as error:
        if error.error_class != "DeviceNotFound":
            raise
        return False
    return True
