"""Removes a device from a running machine by QEMU's ``device_del``, the same for both engines."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from cerne.errors import GuestError, NotFoundError
from cerne.vmm.slot_names import device_name, slot_of

if TYPE_CHECKING:
    from cerne.engine.qmp import QmpClient

_DELETED, _REFUSED = "DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"


def slots_among(names: Iterable[str]) -> frozenset[int]:
    """The slots of the devices in slots, among all of these names."""
    slots = set()
    for name in names:
        with suppress(NotFoundError):
            slots.add(slot_of(name))
    return frozenset(slots)


def ask_back(qmp: QmpClient, slot: int, timeout: float) -> bool:
    """Ask the guest to release a device; return whether it is gone in time, or was not there.

    Raises:
        GuestError: the guest refused.
    """
    from cerne.engine.qmp.session import QmpCommandError, QmpTimeoutError

    name = device_name(slot)
    deadline = time.monotonic() + timeout
    try:
        qmp.execute("device_del", {"id": name})
    except QmpCommandError as error:
        if error.error_class == "DeviceNotFound":
            return True
        # The guest was asked before, and may still answer.
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
            raise GuestError("the guest did not release the device, which it uses")
        return True
