"""A running machine's balloon by QMP, the same for both engines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.base import GuestMemoryUse
from cerne.engine.qmp.client import LOOK_TIMEOUT, QmpClient
from cerne.engine.qmp.memory import memory_of
from cerne.errors import StateError
from cerne.spec.limits import SMALLEST_MEMORY

if TYPE_CHECKING:
    from collections.abc import Mapping

BALLOON = "balloon"
"""The name of the device."""

_PATH = f"/machine/peripheral/{BALLOON}"
_STATISTICS = "guest-stats"
_INTERVAL = "guest-stats-polling-interval"
_PATIENCE = 1.0
_MOMENT = 0.02
_NOT_TOLD = (1 << 64) - 1


def leave_memory(qmp: QmpClient, size: int, machine: str) -> None:
    """Ask a guest to use only this much of its memory.

    The guest does so after a while, and only as far as it can.

    Raises:
        StateError: the machine has no balloon.
        EngineError: it does not answer.
    """
    from cerne.engine.qmp.session import QmpCommandError

    # A balloon is in the memory that the machine started with, without what is plugged.
    present = memory_of(qmp)
    plugged = 0 if present is None else present.requested
    try:
        qmp.execute("balloon", {"value": max(SMALLEST_MEMORY, size - plugged)})
    except QmpCommandError as error:
        if error.error_class != "DeviceNotActive":
            raise
        # QEMU would remove one machine's pages from all machines that share the memory's file.
        raise StateError(
            f"{machine} was started from a template, and has no balloon on QEMU",
            hint=f"boot it: cerne restart {machine}",
            machine=machine,
        ) from error


def has_balloon(qmp: QmpClient) -> bool:
    """Whether a machine has a balloon.

    Raises:
        EngineError: it does not answer.
    """
    from cerne.engine.qmp.session import QmpCommandError

    try:
        qmp.execute("qom-get", {"path": _PATH, "property": _INTERVAL})
    except QmpCommandError:
        return False
    return True


def guest_memory_use(socket: Path, memory: int, *, runs: bool = True) -> GuestMemoryUse | None:
    """The present report of a guest; None if there is no balloon.

    `memory` is what the machine started with, for processes that do not tell what they have.

    If it `runs`, the guest is asked and has a second to answer; a paused guest cannot answer.

    Raises:
        EngineError: the machine does not answer.
    """
    from cerne.engine.qmp.session import QmpCommandError

    with QmpClient(socket, connect_timeout=LOOK_TIMEOUT) as qmp:
        try:
            stats = _asked(qmp) if runs else None
            balloon = qmp.execute("query-balloon")
            present = memory_of(qmp)
        except QmpCommandError:
            return None
    actual = _number(balloon, "actual")
    if actual is None:
        return None
    plugged = 0 if present is None else present.plugged
    total_memory = memory if present is None else present.base + plugged
    given = actual + plugged
    total, available = (_number(stats, f"stat-{name}-memory") for name in ("total", "available"))
    if total is None or available is None:
        return GuestMemoryUse(given, None)
    # Linux counts pages in a self-deflating balloon as used.
    return GuestMemoryUse(given, max(0, total - available - (total_memory - given)))


def _asked(qmp: QmpClient) -> object:
    """The guest's answer, if it comes in time."""
    began = int(time.time())
    deadline = time.monotonic() + _PATIENCE
    # When polling is turned on, the guest is asked at once.
    _poll(qmp, 1)
    try:
        while True:
            said = _statistics(qmp)
            if (_number(said, "last-update") or 0) >= began:
                return said.get("stats")
            if time.monotonic() > deadline:
                return None
            time.sleep(_MOMENT)
    finally:
        _poll(qmp, 0)


def _poll(qmp: QmpClient, interval: int) -> None:
    qmp.execute("qom-set", {"path": _PATH, "property": _INTERVAL, "value": interval})


def _statistics(qmp: QmpClient) -> Mapping[str, object]:
    said = qmp.execute("qom-get", {"path": _PATH, "property": _STATISTICS})
    return said if isinstance(said, dict) else {}


def _number(said: object, name: str) -> int | None:
    value = said.get(name) if isinstance(said, dict) else None
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _NOT_TOLD
    return value if known else None
