"""Starts a QEMU process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.cards import connected_card, require_card_programs
from cerne.engine.detached import answering, kill, spawn
from cerne.engine.opened import Opened
from cerne.engine.plan import FirmwareBoot, LaunchPlan, NetworkNic, TapNic, UserNic
from cerne.engine.qemu.accelerator import Accelerator
from cerne.engine.qemu.command_line import MACHINE_VERSION, PID_FILE, command_line
from cerne.engine.qemu.confinement import confined
from cerne.engine.qemu.disks import opened_disk
from cerne.engine.qemu.user_cards import MARK, by_passt
from cerne.engine.qemu.version import installed_series, maps_read_files, program_stamp
from cerne.engine.qmp.balloon import leave_memory
from cerne.engine.saved import MEMORY_FILE, STATE_FILE, SavedMachine, check
from cerne.engine.supervised import require_served
from cerne.errors import EngineError, HostError, InputError
from cerne.host.members import MACHINE
from cerne.host.process import ProcessIdentity
from cerne.host.processor import processor_fingerprint
from cerne.host.programs import require_program
from cerne.host.removal import remove_tree
from cerne.host.supply import require_hugepages
from cerne.network.ports import require_free
from cerne.network.tap import require_tap
from cerne.storage.locking import require_unlocked
from cerne.vmm.memory_file import memory_digest

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

_BINARY = "qemu-system-x86_64"
# sun_path of sockaddr_un, with its end (unix(7)).
_LONGEST_SOCKET_PATH = 107


def require(plan: LaunchPlan, restores: Callable[[str], bool]) -> None:
    """Refuse a plan, before anything is created (see `Engine.require`)."""
    require_program(_BINARY)
    _require_short_paths(plan)
    if plan.resources.memory.hugepages:
        require_hugepages(plan.name, plan.memory, free=True)
    if isinstance(plan.boot, FirmwareBoot) and not plan.disks:
        raise InputError(f"{plan.name} has neither a kernel nor a disk to boot from")
    require_card_programs(plan, always=False)
    require_free(plan.forwards)
    for nic in plan.taps:
        require_tap(nic.interface)
    for disk in plan.disks:
        if disk.shared:
            require_unlocked(disk.path, writable=not disk.read_only)
    if plan.saved is not None:
        check(plan.saved, restores, plan.memory, memory_digest)


def start(
    plan: LaunchPlan, accelerator: Accelerator, cid: int | None, kept: Path | None = None
) -> ProcessIdentity:
    """Start the machine's process; return when it answers and its vCPUs run.

    `kept` is the file that keeps the series of QEMU (see `installed_series`).
    """
    series = None if plan.saved is None else installed_series(require_program(_BINARY), kept)
    reads_memory = series is not None and maps_read_files(series)
    own = (plan.logs / PID_FILE).parent
    with contextlib.suppress(FileNotFoundError):
        # The process before may have made anything in it.
        remove_tree(own)
    own.mkdir(mode=0o700)
    saved = None if plan.saved is None else SavedMachine.read(plan.saved)
    with Opened() as opened:
        state = None if plan.saved is None else opened.existing(plan.saved / STATE_FILE)
        argv = command_line(
            require_program(_BINARY),
            plan,
            accelerator,
            qmp_descriptor=opened.listening(plan.qmp_socket),
            vsock_cid=cid,
            disk_descriptors=[opened_disk(disk, opened) for disk in plan.disks],
            # A guest that was saved without a balloon would never see one.
            balloon=saved is None or saved.balloon,
            saved=saved,
            reads_memory=reads_memory,
            tap_descriptors={
                nic.mac: opened.tap(nic)
                for nic in plan.nics
                if isinstance(nic, TapNic | NetworkNic)
            },
            link_descriptors=_links(plan, opened),
            sockets={
                path: opened.listening(path) for path in (plan.console_socket, *plan.agent_sockets)
            },
        )
        argv = confined(argv, plan, opened, reads_memory=reads_memory)
        pid = spawn(argv, plan.engine_log, opened.descriptors, plan.runtime, MACHINE)
    try:
        process = answering(pid, plan, "QEMU", partial(_prepare, plan, state))
        try:
            require_served(opened.reports)
        except BaseException:
            kill(process)
            raise
        return process
    except EngineError:
        # Another process may have taken a port since the check, which has a better error.
        require_free(plan.forwards)
        raise


def _links(plan: LaunchPlan, opened: Opened) -> dict[str, int]:
    """The cards that passt serves, if this host has it; QEMU serves the others itself."""
    if not by_passt(plan):
        return {}
    user = [nic for nic in plan.nics if isinstance(nic, UserNic)]
    return {nic.mac: connected_card(plan, nic, opened) for nic in user}


def fingerprint(
    accelerator: Accelerator, *, vsock: bool, passt: bool, kept: Path | None = None
) -> str:
    """This QEMU's series and machine, its accelerator, the processor, and what serves cards.

    `kept` is the file that keeps the series (see `installed_series`).
    """
    series = installed_series(require_program(_BINARY), kept)
    mark = MARK if passt else ""
    return _fingerprint(f"pc-q35-{series}", accelerator, vsock=vsock) + mark


def restores(
    fingerprint_: str, accelerator: Accelerator, *, vsock: bool, kept: Path | None = None
) -> bool:
    """Whether a machine with this fingerprint can be restored.

    The first fingerprints had the size and the time of QEMU's program in place of its series; they
    are known while that program is installed.
    """
    fingerprint_ = fingerprint_.removesuffix(MARK)
    if fingerprint_ == fingerprint(accelerator, vsock=vsock, passt=False, kept=kept):
        return True
    stamp = program_stamp(require_program(_BINARY))
    return fingerprint_ == _fingerprint(stamp, accelerator, vsock=vsock)


def _fingerprint(machine: str, accelerator: Accelerator, *, vsock: bool) -> str:
    devices = " vsock" if vsock else ""
    return f"qemu {MACHINE_VERSION} {machine}{devices} {accelerator} {processor_fingerprint()}"


def _prepare(plan: LaunchPlan, state: int | None, qmp: QmpClient) -> None:
    """Complete its set-up by QMP; the state of a saved machine is inherited."""
    if plan.saved is not None and state is not None:
        from cerne.engine.qemu.saving import go_on

        go_on(qmp, state=state, memory_apart=(plan.saved / MEMORY_FILE).exists())
    if plan.balloon is not None:
        leave_memory(qmp, plan.balloon, plan.name)


def _require_short_paths(plan: LaunchPlan) -> None:
    paths = (plan.qmp_socket, plan.console_socket, *plan.agent_sockets)
    longest = max(paths, key=lambda path: len(str(path).encode()))
    if len(str(longest).encode()) > _LONGEST_SOCKET_PATH:
        raise HostError(
            f"{longest} is too long for a Unix socket ({_LONGEST_SOCKET_PATH} bytes at most)",
            hint="set CERNE_HOME, or XDG_RUNTIME_DIR, to a shorter path",
        )
