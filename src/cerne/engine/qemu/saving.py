"""Saves and restores a QEMU machine: a migration to a file (docs/devel/migration.rst).

Memory in a file stays there (capability x-ignore-shared), and a restored machine maps that file
copy-on-write; otherwise the memory is in the migration's stream.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping, Sequence

from cerne.engine.plan import DiskPlan
from cerne.engine.qemu.command_line import disk_node, fdset
from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.answers import mapping, mappings
from cerne.errors import CerneError, EngineError, InputError, StorageError

_TIMEOUT = 600.0
_MOMENT = 0.001
_SHOWN = 200
_FASTEST = 1 << 40
"""Bytes a second: no limit."""
_UNDER_WAY = frozenset(("setup", "active", "device", "cancelling"))


def save(
    qmp: QmpClient,
    state: int,
    disks: Sequence[tuple[str, DiskPlan, Sequence[int]]],
    *,
    memory_apart: bool,
    resume: bool,
) -> None:
    """Write a machine's state to a descriptor, and let it continue, with other disks if given.

    Each of the disks has its device's name before it, and the descriptors of its file.

    Raises:
        EngineError: saving failed; it continues, if it ran.
        InputError: it has a device that QEMU does not save.
        StorageError: there is no room for its state; it continues, if it ran.
    """
    _require_savable(qmp)
    ran = qmp.status() == "running"
    qmp.stop()
    try:
        _set_up(qmp, memory_apart)
        qmp.execute("getfd", {"fdname": "state"}, descriptors=[state])
        qmp.execute("migrate", {"uri": "fd:state"})
        _wait(qmp)
        for device, disk, descriptors in disks:
            _switch_disk(qmp, device, disk, descriptors)
    except BaseException:
        _abandon(qmp)
        if ran:
            qmp.cont()
        raise
    if resume:
        qmp.cont()
    if resume and not ran:
        # It has to run for a moment, because QEMU does not save a machine again that a migration
        # stopped.
        qmp.stop()


def go_on(qmp: QmpClient, state: int, *, memory_apart: bool) -> None:
    """Restore a saved machine in a process that was started with ``-incoming defer``.

    `state` is a descriptor that the process has inherited.

    Raises:
        EngineError: it refuses the state.
    """
    _set_up(qmp, memory_apart)
    qmp.execute("migrate-incoming", {"uri": f"fd:{state}"})
    _wait(qmp)
    qmp.cont()


def _set_up(qmp: QmpClient, memory_apart: bool) -> None:
    capabilities = {"events": True, "x-ignore-shared": memory_apart}
    states = [{"capability": name, "state": state} for name, state in capabilities.items()]
    qmp.execute("migrate-set-capabilities", {"capabilities": states})
    qmp.execute("migrate-set-parameters", {"max-bandwidth": _FASTEST})


def _wait(qmp: QmpClient) -> None:
    while True:
        status = qmp.wait_event("MIGRATION", timeout=_TIMEOUT).data.get("status")
        if status == "completed":
            # QEMU reports this a moment before the machine can continue.
            deadline = time.monotonic() + _TIMEOUT
            while qmp.status() == "finish-migrate" and time.monotonic() < deadline:
                time.sleep(_MOMENT)
            return
        if status in ("failed", "cancelled"):
            raise _failure(str(_migration(qmp).get("error-desc", status)))


def _failure(why: str) -> CerneError:
    # QEMU reports the kernel's answer only as text.
    if any(os.strerror(number) in why for number in (errno.ENOSPC, errno.EDQUOT)):
        return StorageError(f"saving the machine failed: {why}", hint="free some space: df -h")
    return EngineError(f"QEMU failed to save or restore the machine: {why}")


def _abandon(qmp: QmpClient) -> None:
    """End an interrupted migration, which would stop the machine again at its end."""
    qmp.execute("migrate_cancel")
    deadline = time.monotonic() + _TIMEOUT
    while _migration(qmp).get("status") in _UNDER_WAY and time.monotonic() < deadline:
        time.sleep(_MOMENT)


def _migration(qmp: QmpClient) -> Mapping[str, object]:
    return mapping(qmp.execute("query-migrate"))


def _require_savable(qmp: QmpClient) -> None:
    reasons = _migration(qmp).get("blocked-reasons")
    if isinstance(reasons, list) and reasons:
        raise InputError(
            f"QEMU does not save the machine: {'; '.join(map(str, reasons))}",
            hint="make it without --mount: QEMU does not save mounted directories",
        )


def _switch_disk(qmp: QmpClient, device: str, disk: DiskPlan, descriptors: Sequence[int]) -> None:
    """Put an empty overlay on a disk, which is only read afterwards."""
    former = _node(qmp, device)
    number = set_of(qmp, descriptors, device)
    name = f"{device}-{number}"
    # The layers under it are already open, under their present names.
    qmp.execute("blockdev-add", {**disk_node(name, disk, fdset(number)), "backing": None})
    qmp.execute("blockdev-snapshot", {"node": former, "overlay": name})


def set_of(qmp: QmpClient, descriptors: Sequence[int], owner: str) -> int:
    """The number of a new set of descriptors, marked with the device that has them."""
    arguments: dict[str, object] = {"opaque": owner}
    for descriptor in descriptors:
        added = qmp.execute("add-fd", arguments, descriptors=[descriptor])
        number = mapping(added).get("fdset-id")
        if not isinstance(number, int):
            raise EngineError(f"QEMU answered add-fd with {str(added)[:_SHOWN]}")
        arguments["fdset-id"] = number
    return int(str(arguments["fdset-id"]))


def _node(qmp: QmpClient, device: str) -> str:
    """The present block node of a device."""
    answer = qmp.execute("query-block")
    for block in mappings(answer):
        if device in str(block.get("qdev")).split("/"):
            return str(mapping(block.get("inserted")).get("node-name"))
    raise EngineError(f"QEMU has no disk {device}")
