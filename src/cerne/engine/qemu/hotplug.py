"""Plugs disks and network cards into the ports of a QEMU machine (docs/pcie.txt).

All parts of a device have its name: its block nodes, the sets of descriptors of their files, its
network back end. So all parts are found again, even after the disk's layers have changed.
"""

from __future__ import annotations

from cerne.engine.cards import connected_card
from cerne.engine.opened import Opened
from cerne.engine.plan import DiskPlan, Nic, UserNic
from cerne.engine.qemu.command_line import (
    disk_hardware,
    disk_node,
    fdset,
    first_node,
    netdev,
    nic_hardware,
)
from cerne.engine.qemu.disks import opened_disk
from cerne.engine.qemu.saving import set_of
from cerne.engine.qmp import QmpClient
from cerne.engine.qmp.answers import mappings
from cerne.engine.qmp.unplugging import ask_back, slots_among
from cerne.engine.record import InstanceRecord
from cerne.engine.supervised import require_served
from cerne.errors import ConflictError, EngineError
from cerne.network.passt import has_passt
from cerne.vmm.slot_names import device_name

# The index among similar devices, which names of devices in slots do not use.
_ANY = 0


def plug_disk(qmp: QmpClient, disk: DiskPlan) -> None:
    """Plug a disk into its slot.

    Raises:
        ConflictError: the slot is taken, or another machine uses the disk.
        EngineError: QEMU refuses it; nothing of it is left.
    """
    assert disk.slot is not None
    _make_free(qmp, disk.slot)
    node = first_node(_ANY, disk)
    try:
        with Opened(sent=True) as opened:
            opened_disk(disk, opened)
            number = set_of(qmp, opened.descriptors, device_name(disk.slot))
        qmp.execute("blockdev-add", disk_node(node, disk, fdset(number)))
        qmp.execute("device_add", disk_hardware(_ANY, disk, node))
    except BaseException:
        _clear(qmp, disk.slot)
        raise


def plug_nic(qmp: QmpClient, nic: Nic, machine: InstanceRecord) -> None:
    """Plug a network card into its slot.

    Raises:
        ConflictError: the slot is taken, or another machine has the tap.
        HostError, InputError: this host has no such tap for this user.
        EngineError: QEMU refuses it; nothing of it is left.
    """
    assert nic.slot is not None
    _make_free(qmp, nic.slot)
    try:
        end = netdev(_ANY, nic)
        if isinstance(nic, UserNic) and not has_passt():
            qmp.execute("netdev_add", {"type": "user", "id": end, "hostname": machine.name})
        else:
            with Opened(sent=True) as opened:
                kind = _connected(machine, nic, opened)
                qmp.execute("getfd", {"fdname": end}, descriptors=opened.descriptors)
            qmp.execute("netdev_add", {"type": kind, "id": end, "fd": end})
        qmp.execute("device_add", nic_hardware(_ANY, nic))
    except BaseException:
        _clear(qmp, nic.slot)
        raise


def _connected(machine: InstanceRecord, nic: Nic, opened: Opened) -> str:
    """The kind of the back end of a card, of which `opened` gets the descriptor."""
    if isinstance(nic, UserNic):
        connected_card(machine, nic, opened)
        require_served(opened.reports)
        return "socket"
    opened.tap(nic)
    return "tap"


def unplug(qmp: QmpClient, slot: int, timeout: float) -> bool:
    """Ask the guest to release the device in a slot; return whether it is completely gone.

    Raises:
        GuestError: the guest refused.
    """
    gone = ask_back(qmp, slot, timeout)
    if gone:
        _clear(qmp, slot)
    return gone


def taken(qmp: QmpClient) -> frozenset[int]:
    """The slots that are not empty."""
    return slots_among(_names(qmp.execute("qom-list", {"path": "/machine/peripheral"}), "name"))


def _make_free(qmp: QmpClient, slot: int) -> None:
    if slot in taken(qmp):
        raise ConflictError(f"there is a device {device_name(slot)} already")
    # A guest may release a device after the command has stopped waiting.
    _clear(qmp, slot)


def _clear(qmp: QmpClient, slot: int) -> None:
    """Remove the parts of a device that is gone."""
    mine = f"{device_name(slot)}-"
    nodes = _names(qmp.execute("query-named-block-nodes"), "node-name")
    left = [name for name in nodes if name.startswith(mine)]
    # The top of a disk's layers has to be removed first.
    while left:
        kept = [name for name in left if not _done(qmp, "blockdev-del", "node-name", name)]
        if len(kept) == len(left):
            raise EngineError(f"QEMU does not close the disk {', '.join(kept)}")
        left = kept
    _done(qmp, "netdev_del", "id", f"{mine}net")
    for number in _sets_of(qmp, device_name(slot)):
        _done(qmp, "remove-fd", "fdset-id", number)


def _done(qmp: QmpClient, command: str, argument: str, value: str | int) -> bool:
    from cerne.engine.qmp.session import QmpCommandError

    try:
        qmp.execute(command, {argument: value})
    except QmpCommandError:
        return False
    return True


def _sets_of(qmp: QmpClient, owner: str) -> list[int]:
    return [
        number
        for each in mappings(qmp.execute("query-fdsets"))
        if isinstance(number := each.get("fdset-id"), int)
        and any(file.get("opaque") == owner for file in mappings(each.get("fds")))
    ]


def _names(answer: object, member: str) -> list[str]:
    return [str(each.get(member)) for each in mappings(answer)]
