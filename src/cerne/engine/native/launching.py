"""Starts a process of our own VMM, and reads afterwards how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from cerne.engine.base import Ending
from cerne.engine.cards import require_card_programs
from cerne.engine.detached import START, answering, kill, reap, spawn
from cerne.engine.native.backends import (
    is_served_outside,
    keeps_memory,
    last_words,
    require_backends,
    require_readable,
)
from cerne.engine.native.configuration import (
    CONFIG_FILE,
    ENDING_FILE,
    child_configuration,
    configuration,
    confined,
    saved_configuration,
)
from cerne.engine.native.fork_server import ForkServer, running_fork_server
from cerne.engine.native.instance import require_own_memory
from cerne.engine.opened import Opened
from cerne.engine.panic import panicked, tail
from cerne.engine.plan import FirmwareBoot, LaunchPlan
from cerne.engine.saved import check
from cerne.engine.supervised import require_served
from cerne.errors import EngineError, HostError, InputError
from cerne.host.cell_note import CellNote
from cerne.host.logs import last_line
from cerne.host.members import MACHINE
from cerne.host.probe import KVM_DEVICE
from cerne.host.process import ProcessIdentity
from cerne.host.processor import processor_fingerprint
from cerne.host.supply import require_hugepages
from cerne.kvm.hints import missing_hint, permission_hint
from cerne.network.ports import require_free
from cerne.network.tap import require_tap
from cerne.storage.locking import require_unlocked
from cerne.vmm.end import PANICKED
from cerne.vmm.memory_file import memory_digest
from cerne.vmm.upgrade import FORMAT, OLDEST

_LARGEST_ENDING = 4096

VMM = (*START, "machine")
"""The program of a machine's process, which gets its configuration."""


def require(plan: LaunchPlan, restores: Callable[[str], bool]) -> None:
    """Refuse a plan, before anything is created (see `Engine.require`)."""
    if not KVM_DEVICE.exists():
        raise HostError(f"there is no {KVM_DEVICE}", hint=missing_hint())
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        raise HostError(f"{KVM_DEVICE} is not open to this user", hint=permission_hint(KVM_DEVICE))
    if isinstance(plan.boot, FirmwareBoot):
        raise InputError(
            f"{plan.name} boots by firmware, which the native engine does not have",
            hint="use --engine qemu",
        )
    require_backends(plan)
    if plan.resources.memory.hugepages:
        require_hugepages(plan.name, plan.memory, free=True)
    for disk in plan.disks:
        require_readable(disk)
    _require_limits(plan)
    if plan.saved is not None:
        require_own_memory(plan.name, shares_memory=keeps_memory(plan))
    require_card_programs(plan, always=True)
    for nic in plan.taps:
        require_tap(nic.interface)
    require_free(plan.forwards)
    for disk in plan.disks:
        if disk.shared:
            require_unlocked(disk.path, writable=not disk.read_only)
    if plan.saved is not None:
        check(plan.saved, restores, plan.memory, memory_digest)


def _require_limits(plan: LaunchPlan) -> None:
    limited = plan.resources.disk.iops is not None or plan.resources.disk.rate is not None
    for disk in plan.disks:
        if limited and is_served_outside(disk):
            raise InputError(
                f"{disk.path} is served by another process, which has no limit of its rate",
                hint=f"convert it: qemu-img convert -O qcow2 {disk.path} NEW",
            )


def start(plan: LaunchPlan, *, emulated: bool) -> ProcessIdentity:
    """Start the machine's process; return when it answers and its vCPUs run."""
    server = None if _must_be_attached(plan) else running_fork_server()
    try:
        with Opened(sent=server is not None) as opened:
            if server is None:
                pid = _spawn(plan, opened, emulated=emulated)
            else:
                pid = _fork_off(server, plan, opened, emulated=emulated)
        return _serving(pid, plan, opened)
    except EngineError as error:
        # Another process may have taken a port since the check, which has a better error.
        require_free(plan.forwards)
        said = last_words(plan)
        if not said or said in error.message:
            raise
        words = f"{error.message} ({said})"
        raise EngineError(words, hint=error.hint, machine=plan.name) from error


def fingerprint() -> str:
    """The format of saved machines, and the processor that guests see."""
    return _fingerprint(FORMAT)


def restores(fingerprint: str) -> bool:
    """Whether a machine with this fingerprint can be restored: older formats can."""
    return fingerprint in [_fingerprint(number) for number in range(OLDEST, FORMAT + 1)]


def ending(logs: Path) -> Ending:
    """How the process with these logs ended."""
    reap()
    try:
        with (logs / ENDING_FILE).open("rb") as file:
            said = json.loads(file.read(_LARGEST_ENDING))
        # An attacker may have written it: half of a surrogate pair is no text.
        reason = str(said["reason"]).encode(errors="replace").decode()
        if reason == PANICKED:
            return panicked(logs / "console.log")
        return Ending(orderly=bool(said["orderly"]), reason=reason)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        # A process reports its end; this one had no time to.
        line = last_line(logs / "engine.log")
        failed = b"Traceback (most recent call last)" in tail(logs / "engine.log")
        what = "its process failed" if failed else "its process was killed"
        return Ending(
            orderly=False, reason=f"{what}; the last line of its log: {line}" if line else what
        )


def _fingerprint(number: int) -> str:
    """The fingerprint of a machine that is saved here in this format."""
    return f"native {number} {processor_fingerprint()}"


def _must_be_attached(plan: LaunchPlan) -> bool:
    """Whether a forked process does not enter the machine's cell by itself."""
    note = CellNote.read(plan.control_group)
    return note is not None and bool(note.attach)


def _spawn(plan: LaunchPlan, opened: Opened, *, emulated: bool) -> int:
    config = confined(configuration(plan, opened, emulated=emulated), opened)
    config = config._replace(saved=saved_configuration(plan, opened))
    path = plan.runtime / CONFIG_FILE
    config.write(path)
    argv = [*VMM, str(path)]
    return spawn(argv, plan.engine_log, opened.descriptors, plan.runtime, MACHINE)


def _fork_off(server: ForkServer, plan: LaunchPlan, opened: Opened, *, emulated: bool) -> int:
    plan.engine_log.unlink(missing_ok=True)
    config = confined(child_configuration(plan, opened, emulated=emulated), opened)
    config = config._replace(saved=saved_configuration(plan, opened))
    return server.start(config, opened.descriptors)


def _serving(pid: int, plan: LaunchPlan, opened: Opened) -> ProcessIdentity:
    """The machine's process, after it and its backends answer; else it is killed."""
    process = answering(pid, plan, "the VMM")
    try:
        require_served(opened.reports)
    except BaseException:
        kill(process)
        raise
    return process
