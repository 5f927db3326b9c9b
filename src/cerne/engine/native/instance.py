"""A machine of the engine `native` that runs: what its VMM is asked.

What opens files and starts programs is imported where it is used: most commands only want the
agent.
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
from cerne.engine.qmp.instance import QmpInstance
from cerne.errors import EngineError, GuestTimeoutError, InputError, StorageError

if TYPE_CHECKING:
    from cerne.devices.state import SavedState
    from cerne.engine.base import Instance
    from cerne.engine.opened import Opened
    from cerne.engine.record import InstanceRecord
    from cerne.engine.vsock import UnixVsock
    from cerne.host.process import ProcessIdentity
    from cerne.vmm.config import DiskConfig, NicConfig

_TIMEOUT = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NativeInstance(QmpInstance):
    """A machine of our own VMM."""

    emulated: bool
    """Whether this host's kernel emulates guests' kernel code, which its children are told."""

    def save(self, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool) -> None:
        """Save its memory and devices (see `Instance.save`)."""
        from cerne.devices.state import plain
        from cerne.engine.native.configuration import disk_configuration
        from cerne.engine.opened import Opened
        from cerne.engine.saved import MEMORY_FILE, STATE_FILE, SavedMachine, file_digest, stamp
        from cerne.host.members import SAVER

        require_own_memory(self.record.name, shares_memory=self.record.shares_memory)
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as report:
            with Opened(sent=True) as opened:
                arguments: dict[str, object] = {
                    "state": opened.new(directory / STATE_FILE),
                    "memory": opened.new(directory / MEMORY_FILE),
                    "report": opened.take(writing),
                    "registration": opened.registration(self.record.runtime, SAVER),
                    "disks": [plain(disk_configuration(disk, opened)) for disk in disks if resume],
                    "resume": resume,
                }
                self._execute("cerne-save", arguments, opened)
            # It ends when the child that writes has closed it, or was killed.
            outcome = json.loads(report.read() or b'{"error": "it was killed"}')
        if "error" in outcome:
            why = f"{self.record.name} could not be saved: {outcome['error']}"
            # The child that writes tells in words alone what the kernel answered.
            if any(os.strerror(number) in why for number in (errno.ENOSPC, errno.EDQUOT)):
                raise StorageError(why, hint=f"see that there is space: df -h {directory.parent}")
            raise EngineError(why)
        SavedMachine(
            fingerprint=self.record.fingerprint,
            memory=self.record.memory,
            state_digest=file_digest(directory / STATE_FILE),
            memory_digest=str(outcome["digest"]),
            memory_stamp=stamp(directory / MEMORY_FILE),
        ).write(directory)

    def break_off_saving(self) -> None:
        """Nothing: a child of the VMM saves, and never stops the machine afterwards."""

    def fork(self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]) -> list[Instance]:
        """Fork it (see `Instance.fork`)."""
        from cerne.engine.detached import answering, kill
        from cerne.engine.native.turns import turns
        from cerne.host.process import ProcessIdentity

        require_own_memory(self.record.name, shares_memory=self.record.shares_memory)
        pids: list[int] = []
        try:
            several = turns(disks, children)
            with self._held(len(several) > 1):
                for turn in several:
                    self._fork(disks, turn, pids)
            return [
                self._child(child, answering(pid, child, "the VMM"))
                for pid, child in zip(pids, children, strict=True)
            ]
        except BaseException:
            for pid in pids:
                kill(ProcessIdentity.of(pid))
            raise

    def vsock(self) -> UnixVsock | None:
        """The Unix sockets in a directory of the machine's."""
        from cerne.engine.vsock import UnixVsock

        directory = self.record.vsock_directory
        return None if directory is None else UnixVsock(directory)

    def plug(self, device: DiskPlan | Nic) -> None:
        """Plug a device into it (see `Instance.plug`)."""
        from cerne.devices.state import plain
        from cerne.engine.native.backends import require_readable, require_served
        from cerne.engine.native.configuration import disk_configuration, nic_configuration
        from cerne.engine.opened import Opened

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

    def unplug(self, slot: int, timeout: float, *, force: bool) -> None:
        """Take a device out of it (see `Instance.unplug`)."""
        from cerne.engine.qmp.unplugging import ask_back

        with self._client() as qmp:
            if force:
                _unless_gone(qmp, "cerne-pull-device", slot)
            elif not ask_back(qmp, slot, timeout) and _unless_gone(qmp, "cerne-keep-device", slot):
                raise GuestTimeoutError(
                    f"the guest of {self.record.name} did not let go of it within {timeout:g} s",
                    hint="unmount it there, or take it out whatever the guest does: --force",
                )

    def plugged(self) -> frozenset[int]:
        """The slots that are taken (see `Instance.plugged`)."""
        from cerne.engine.qmp.unplugging import slots_among

        with self._client() as qmp:
            said = qmp.execute("cerne-query-devices")
        devices = said if isinstance(said, list) else []
        return slots_among(str(device["id"]) for device in devices)

    def _fork(
        self, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan], pids: list[int]
    ) -> None:
        """Fork children at once, and add their pids to `pids`."""
        from cerne.devices.state import plain
        from cerne.engine.native.backends import require_served
        from cerne.engine.native.configuration import child_configuration, disk_configuration
        from cerne.engine.opened import Opened

        with Opened(sent=True) as opened:
            configs = [
                child_configuration(child, opened, emulated=self.emulated) for child in children
            ]
            arguments: dict[str, object] = {
                "children": [config.to_json() for config in configs],
                "disks": [plain(disk_configuration(disk, opened)) for disk in disks],
            }
            answer = self._execute("cerne-fork", arguments, opened)
        pids += answer.integers("pids", 1 << 22)
        require_served(opened.reports)

    def _child(self, plan: LaunchPlan, process: ProcessIdentity) -> NativeInstance:
        # Its process is one of the same VMM, whatever version of that this command has.
        record = native_record(plan, process, self.record.fingerprint, shares_memory=False)
        return NativeInstance(record, self.emulated)

    @contextlib.contextmanager
    def _held(self, several: bool) -> Iterator[None]:
        """Pause it where it is forked in several turns: all its children are of one moment."""
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
        assert isinstance(answer, dict)
        said = SavedState("the answer of the VMM", answer)
        microseconds = said.integer("pause", 1 << 62) // 1000
        _log.debug("%s paused %s for %d us", command, self.record.name, microseconds)
        return said

    def _client(self) -> QmpClient:
        return QmpClient(self.record.qmp, _TIMEOUT, stopped=self.process.stopped)


def native_record(
    plan: LaunchPlan, process: ProcessIdentity, fingerprint: str, *, shares_memory: bool
) -> InstanceRecord:
    """The record of a machine that was started or forked by this plan."""
    from cerne.engine.record import InstanceRecord

    return InstanceRecord.of(
        plan,
        process,
        "native",
        fingerprint,
        vsock_directory=plan.vsock_directory,
        shares_memory=shares_memory,
    )


def require_own_memory(name: str, *, shares_memory: bool) -> None:
    """Refuse to keep what backends know of the machine, and to fork memory that they share.

    Raises:
        InputError: the machine has such.
    """
    if shares_memory:
        raise InputError(
            f"{name} cannot be saved or forked: other processes serve devices of it",
            hint="make it without --mount, and copy what it needs in: cerne cp",
        )


def _unless_gone(qmp: QmpClient, command: str, slot: int) -> bool:
    """Say something of a device; False where it is gone."""
    from cerne.engine.qmp.session import QmpCommandError
    from cerne.vmm.slot_names import device_name

    try:
        qmp.execute(command, {"id": device_name(slot)})
    except QmpCommandError as error:
        if error.error_class != "DeviceNotFound":
            raise
        return False
    return True
