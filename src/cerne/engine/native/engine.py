"""The engine `native`: each machine is a process of our own VMM (`cerne.vmm`) on /dev/kvm."""

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

from cerne.devices.state import SavedState, plain
from cerne.engine.base import (
    DiskPlan,
    Ending,
    FirmwareBoot,
    KernelBoot,
    LaunchPlan,
    Nic,
    ShareType,
    TapNic,
    UserNic,
)
from cerne.engine.detached import answering, kill, reap, spawn
from cerne.engine.native.backends import (
    disk_backend,
    is_served_outside,
    last_words,
    needs_backends,
    network_backend,
    require_backends,
    require_readable,
    require_served,
    share_backend,
)
from cerne.engine.native.nursery import START, Nursery, another_nursery
from cerne.engine.native.turns import turns
from cerne.engine.opened import Opened
from cerne.engine.panic import panicked, tail
from cerne.engine.qmp.unplugging import ask_back, slots_among
from cerne.engine.saved import (
    MEMORY_FILE,
    STATE_FILE,
    SavedMachine,
    check,
    file_digest,
    stamp,
)
from cerne.engine.vsock import GUEST_SOCKET, UnixVsock
from cerne.errors import EngineError, GuestTimeoutError, HostError, InputError, StorageError
from cerne.host.logs import last_line
from cerne.host.members import MACHINE, SAVER
from cerne.host.probe import KVM_DEVICE
from cerne.host.process import ProcessIdentity
from cerne.host.processor import processor_fingerprint
from cerne.host.programs import require_program
from cerne.kvm.hints import missing_hint, permission_hint
from cerne.network.passt import has_way_out
from cerne.network.ports import require_free
from cerne.network.tap import mtu_of, require_tap
from cerne.storage.locking import require_unlocked
from cerne.storage.overlay import chain
from cerne.vmm.config import (
    BootConfig,
    DiskConfig,
    FileConfig,
    LinkKind,
    NicConfig,
    SavedConfig,
    ShareConfig,
    VmmConfig,
    VsockConfig,
)
from cerne.vmm.end import PANICKED
from cerne.vmm.slot_names import device_name
from cerne.vmm.snapshot import memory_digest
from cerne.vmm.upgrade import FORMAT, OLDEST

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

VMM = (*START, "machine")
"""The program of a machine's process, which is told its configuration."""
CONFIG_FILE = "vmm.json"
"""In `LaunchPlan.runtime`."""
ENDING_FILE = "ending.json"
"""In `LaunchPlan.logs`."""

_log = logging.getLogger(__name__)

_TIMEOUT = 60.0


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
    def share_type(self) -> ShareType:
        """virtio-fs."""
        return ShareType("virtiofs")

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
        require_backends(plan)
        for disk in plan.disks:
            require_readable(disk)
        if plan.saved is not None:
            _require_own_memory(plan)
        if any(isinstance(nic, UserNic) for nic in plan.nics):
            require_program("passt")
            if not has_way_out():
                raise HostError(
                    "passt gives a guest no network on a host that has no default route",
                    hint="use --engine qemu, or --network none",
                )
        for nic in plan.taps:
            require_tap(nic.interface)
        require_free(plan.forwards)
        for disk in plan.disks:
            if disk.shared:
                require_unlocked(disk.path, writable=not disk.read_only)
        if plan.saved is not None:
            check(plan.saved, self.restores, plan.memory, memory_digest)

    def start(self, plan: LaunchPlan) -> ProcessIdentity:
        """Start the machine's process; return when it answers and its vCPUs run."""
        nursery = another_nursery()
        try:
            with Opened(sent=nursery is not None) as opened:
                if nursery is None:
                    pid = self._spawn(plan, opened)
                else:
                    pid = self._fork_off(nursery, plan, opened)
            return _serving(pid, plan, opened)
        except EngineError as error:
            # Another process may have taken a port since it was looked at: better words for that.
            require_free(plan.forwards)
            said = last_words(plan)
            if not said or said in error.message:
                raise
            words = f"{error.message} ({said})"
            raise EngineError(words, hint=error.hint, machine=plan.name) from error

    def _spawn(self, plan: LaunchPlan, opened: Opened) -> int:
        config = self._config(plan, opened)._replace(saved=_saved(plan, opened))
        path = plan.runtime / CONFIG_FILE
        config.write(path)
        argv = [*VMM, str(path)]
        return spawn(argv, plan.engine_log, opened.descriptors, plan.runtime, MACHINE)

    def _fork_off(self, nursery: Nursery, plan: LaunchPlan, opened: Opened) -> int:
        plan.engine_log.unlink(missing_ok=True)
        config = self._child(plan, opened)._replace(saved=_saved(plan, opened))
        return nursery.start(config, opened.descriptors)

    def fingerprint(self) -> str:
        """The format in which machines are saved, and the processor as guests see it."""
        return _fingerprint(FORMAT)

    def restores(self, fingerprint: str) -> bool:
        """Whether what was saved with this fingerprint can go on here: older formats can."""
        return fingerprint in [_fingerprint(number) for number in range(OLDEST, FORMAT + 1)]

    def save(
        self, plan: LaunchPlan, directory: Path, disks: tuple[DiskPlan, ...], *, resume: bool
    ) -> None:
        """Save a machine's memory and devices (see `Engine.save`)."""
        _require_own_memory(plan)
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as report:
            with Opened(sent=True) as opened:
                arguments: dict[str, object] = {
                    "state": opened.new(directory / STATE_FILE),
                    "memory": opened.new(directory / MEMORY_FILE),
                    "report": opened.take(writing),
                    "registration": opened.registration(plan.runtime, SAVER),
                    "disks": [plain(_disk(disk, opened)) for disk in disks if resume],
                    "resume": resume,
                }
                _execute(plan, "cerne-save", arguments, opened)
            # It ends when the child that writes has closed it, or was killed.
            outcome = json.loads(report.read() or b'{"error": "it was killed"}')
        if "error" in outcome:
            why = f"{plan.name} could not be saved: {outcome['error']}"
            # The child that writes tells in words alone what the kernel answered.
            if any(os.strerror(number) in why for number in (errno.ENOSPC, errno.EDQUOT)):
                raise StorageError(why, hint=f"see that there is space: df -h {directory.parent}")
            raise EngineError(why)
        SavedMachine(
            fingerprint=self.fingerprint(),
            memory=plan.memory,
            state_digest=file_digest(directory / STATE_FILE),
            memory_digest=str(outcome["digest"]),
            memory_stamp=stamp(directory / MEMORY_FILE),
        ).write(directory)

    def fork(
        self, plan: LaunchPlan, disks: tuple[DiskPlan, ...], children: Sequence[LaunchPlan]
    ) -> list[ProcessIdentity]:
        """Fork a running machine (see `Engine.fork`)."""
        _require_own_memory(plan)
        pids: list[int] = []
        try:
            several = turns(disks, children)
            with _held(plan, len(several) > 1):
                for turn in several:
                    self._fork(plan, disks, turn, pids)
            return [
                answering(pid, child, "the VMM") for pid, child in zip(pids, children, strict=True)
            ]
        except BaseException:
            for pid in pids:
                kill(ProcessIdentity.of(pid))
            raise

    def vsock(self, plan: LaunchPlan) -> UnixVsock:
        """The Unix sockets in a directory of the machine's."""
        return UnixVsock(plan.vsock_directory)

    def plug(self, plan: LaunchPlan, device: DiskPlan | Nic) -> None:
        """Plug a device into a running machine (see `Engine.plug`)."""
        with Opened(sent=True) as opened:
            config: DiskConfig | NicConfig
            if isinstance(device, DiskPlan):
                require_readable(device)
                command, config = "cerne-plug-disk", _disk(device, opened)
            else:
                command, config = "cerne-plug-nic", _nic(plan, device, opened)
                require_served(opened.reports)
            with _client(plan) as qmp:
                qmp.execute(command, plain(config), descriptors=opened.descriptors)

    def unplug(self, plan: LaunchPlan, slot: int, timeout: float, *, force: bool) -> None:
        """Take a device out of a running machine (see `Engine.unplug`)."""
        with _client(plan) as qmp:
            if force:
                _unless_gone(qmp, "cerne-pull-device", slot)
            elif not ask_back(qmp, slot, timeout) and _unless_gone(qmp, "cerne-keep-device", slot):
                raise GuestTimeoutError(
                    f"the guest of {plan.name} did not let go of it within {timeout:g} s",
                    hint="unmount it there, or take it out whatever the guest does: --force",
                )

    def plugged(self, plan: LaunchPlan) -> frozenset[int]:
        """The slots that are taken (see `Engine.plugged`)."""
        with _client(plan) as qmp:
            said = qmp.execute("cerne-query-devices")
        devices = said if isinstance(said, list) else []
        return slots_among(str(device["id"]) for device in devices)

    def ending(self, logs: Path) -> Ending:
        """How the process whose logs these are ended."""
        reap()
        try:
            said = json.loads((logs / ENDING_FILE).read_text())
            if said["reason"] == PANICKED:
                return panicked(logs / "console.log")
            return Ending(orderly=bool(said["orderly"]), reason=str(said["reason"]))
        except (OSError, ValueError, KeyError, TypeError):
            # It says so at its end, and had no time to.
            line = last_line(logs / "engine.log")
            failed = b"Traceback (most recent call last)" in tail(logs / "engine.log")
            what = "its process failed" if failed else "its process was killed"
            return Ending(orderly=False, reason=f"{what}; it last said: {line}" if line else what)

    def _fork(
        self,
        plan: LaunchPlan,
        disks: tuple[DiskPlan, ...],
        children: Sequence[LaunchPlan],
        pids: list[int],
    ) -> None:
        """Fork children at once, and add their pids to `pids`."""
        with Opened(sent=True) as opened:
            configs = [self._child(child, opened) for child in children]
            arguments: dict[str, object] = {
                "children": [config.to_json() for config in configs],
                "disks": [plain(_disk(disk, opened)) for disk in disks],
            }
            answer = _execute(plan, "cerne-fork", arguments, opened)
        pids += answer.integers("pids", 1 << 22)
        require_served(opened.reports)

    def _config(self, plan: LaunchPlan, opened: Opened) -> VmmConfig:
        return VmmConfig(
            name=plan.name,
            identity=str(plan.runtime / CONFIG_FILE),
            cpus=plan.cpus,
            memory=plan.memory,
            boot=_boot(plan, opened),
            qmp=opened.listening(plan.qmp_socket),
            console=opened.listening(plan.console_socket),
            console_log=opened.log(plan.console_log),
            agents=tuple(opened.listening(path) for path in plan.agent_sockets),
            ending=opened.new(plan.logs / ENDING_FILE),
            disks=tuple(_served_disk(plan, index, opened) for index in range(len(plan.disks))),
            shares=tuple(
                ShareConfig(share.tag, share_backend(plan, index, opened))
                for index, share in enumerate(plan.shares)
            ),
            vsock=_vsock(plan, opened),
            nics=tuple(_nic(plan, nic, opened) for nic in plan.nics),
            balloon=plan.balloon,
            emulated=self.emulated,
        )

    def _child(self, plan: LaunchPlan, opened: Opened) -> VmmConfig:
        """The configuration of a forked process, whose log is not that of its parent."""
        return self._config(plan, opened)._replace(
            engine_log=opened.log(plan.engine_log),
            registration=opened.registration(plan.runtime, MACHINE),
        )


def _serving(pid: int, plan: LaunchPlan, opened: Opened) -> ProcessIdentity:
    """The machine's process, once it answers and what serves it serves; or else it is killed."""
    process = answering(pid, plan, "the VMM")
    try:
        require_served(opened.reports)
    except BaseException:
        kill(process)
        raise
    return process


def _saved(plan: LaunchPlan, opened: Opened) -> SavedConfig | None:
    if plan.saved is None:
        return None
    return SavedConfig(
        state=opened.existing(plan.saved / STATE_FILE),
        memory=opened.existing(plan.saved / MEMORY_FILE),
    )


def _boot(plan: LaunchPlan, opened: Opened) -> BootConfig:
    boot = plan.boot
    assert isinstance(boot, KernelBoot)
    return BootConfig(
        kernel=opened.existing(boot.kernel),
        initrd=None if boot.initrd is None else opened.existing(boot.initrd),
        command_line=f"{boot.command_line} panic=-1 reboot=k {plan.network_parameter}",
    )


def _require_own_memory(plan: LaunchPlan) -> None:
    """Refuse to keep what backends know of the machine, and to fork memory that they share.

    Raises:
        InputError: the machine has such.
    """
    if needs_backends(plan):
        raise InputError(
            f"{plan.name} cannot be saved or forked: other processes serve devices of it",
            hint="make it without --mount, and copy what it needs in: cerne cp",
        )


def _served_disk(plan: LaunchPlan, index: int, opened: Opened) -> DiskConfig:
    """A disk, which a backend serves where the VMM does not read its format."""
    disk = plan.disks[index]
    if not is_served_outside(disk):
        return _disk(disk, opened)
    return DiskConfig((), disk.serial, disk.read_only, backend=disk_backend(plan, index, opened))


def _disk(disk: DiskPlan, opened: Opened) -> DiskConfig:
    # The top alone is written; what is under it may be the top of no other machine.
    (top, form), *under = chain(disk.path, disk.format)
    writable = not disk.read_only
    opens = opened.locked if disk.shared else opened.existing
    files = [FileConfig(opens(top, writable=writable), form)]
    files += [FileConfig(opened.existing(path), form) for path, form in under]
    return DiskConfig(tuple(files), disk.serial, disk.read_only, disk.slot)


def _nic(plan: LaunchPlan, nic: Nic, opened: Opened) -> NicConfig:
    """A network card on a tap, or on a socket that has passt at its other end."""
    if isinstance(nic, TapNic):
        tap, vhost = opened.tap(nic.interface), opened.vhost_net()
        mtu = mtu_of(nic.interface)
        return NicConfig(nic.mac, tap, LinkKind.TAP, mtu, vhost, nic.slot)
    return network_backend(plan, nic, opened)


def _vsock(plan: LaunchPlan, opened: Opened) -> VsockConfig:
    return VsockConfig(
        directory=opened.searched(plan.vsock_directory),
        listener=opened.listening(plan.vsock_directory / GUEST_SOCKET),
    )


@contextlib.contextmanager
def _held(plan: LaunchPlan, several: bool) -> Iterator[None]:
    """Pause a machine that is forked in several turns: all its children are of one moment."""
    from cerne.engine.qmp import QmpClient

    if not several:
        yield
        return
    with QmpClient(plan.qmp_socket, _TIMEOUT) as qmp:
        ran = qmp.status() == "running"
        qmp.stop()
        try:
            yield
        finally:
            if ran:
                qmp.cont()


def _client(plan: LaunchPlan) -> QmpClient:
    from cerne.engine.qmp import QmpClient

    return QmpClient(plan.qmp_socket, _TIMEOUT)


def _unless_gone(qmp: QmpClient, command: str, slot: int) -> bool:
    """Say something of a device; False where it is gone."""
    from cerne.engine.qmp.session import QmpCommandError

    try:
        qmp.execute(command, {"id": device_name(slot)})
    except QmpCommandError as error:
        if error.error_class != "DeviceNotFound":
            raise
        return False
    return True


def _execute(
    plan: LaunchPlan, command: str, arguments: dict[str, object], opened: Opened
) -> SavedState:
    from cerne.engine.qmp import QmpClient

    with QmpClient(plan.qmp_socket, _TIMEOUT) as qmp:
        answer = qmp.execute(command, arguments, descriptors=opened.descriptors)
    assert isinstance(answer, dict)
    said = SavedState("the answer of the VMM", answer)
    _log.debug("%s paused %s for %d us", command, plan.name, said.integer("pause", 1 << 62) // 1000)
    return said


def _fingerprint(number: int) -> str:
    """The fingerprint of what is saved here in the format of this number."""
    return f"native {number} {processor_fingerprint()}"
