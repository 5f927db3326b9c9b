"""Taking a device out of a running machine, the same for both engines: by QEMU's ``device_del``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cerne.errors import GuestError

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

_PREFIX = "hot"
_DELETED, _REFUSED = "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"


def device_name(slot: int) -> str:
    """What the device in a slot is called in QMP."""
    return f"{_PREFIX}{slot}"


def slots_among(names: Iterable[str]) -> frozenset[int]:
    """The slots of those devices, of all of these names, that are in one."""
    digits = (name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))
    return frozenset(int(each) for each in digits if each.isdecimal())


def ask_back(qmp: QmpClient, slot: int, timeout: float) -> bool:
    """Ask the guest for a device; whether it is gone in time, or was not there.

    Raises:
        GuestError: the guest refused.
    """
    from cerne.engine._qmp_session import QmpCommandError, QmpTimeoutError

    name = device_name(slot)
    deadline = time.monotonic() + timeout
    try:
        qmp.execute("device_del", {"id": name})
    except QmpCommandError as error:
        if error.error_class == "DeviceNotFound":
            return True
        # It was asked before, and may yet answer.
        if "in the process of unplug" not in error.message:
            raise
    while True:
        try:
            left = max(0.0, deadline - time.monotonic())
            event = qmp.wait_event(_DELETED, _REFUSED, timeout=left)
        except QmpTimeoutError:
            return False
        if event.data.get("device") != name:
            continue
        if event.name == _REFUSED:
            raise GuestError("the guest did not let go of it: it is in use there")
        return True
