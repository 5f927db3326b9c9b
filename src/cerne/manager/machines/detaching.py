"""Taking a device from a machine that runs, so that a command may be killed in between.

The slot is noted before the device is unplugged, and with the specification that has the device no
more the note is gone. If the command is killed in between, the process says whether the device is
still plugged in: then it stays, and if not, it is the machine's no more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne import faults
from cerne.manager.machines.cards import disconnect_nic
from cerne.manager.machines.context import MachineContext
from cerne.manager.store.promises import Claim, Resource

if TYPE_CHECKING:
    from cerne.manager.store import Record

_DETACHING = "detach slot "
"""What a command does to a machine (`Record.doing`) while its guest releases a device."""


def unplug(
    context: MachineContext, record: Record, slot: int, timeout: float, *, force: bool
) -> None:
    """Take the device in a slot from a process; the caller changes the specification then.

    Raises:
        GuestError, GuestTimeoutError, EngineError: it stays.
    """
    context.store.begin(record, f"{_DETACHING}{slot}")
    faults.step("detaching")
    try:
        context.instance(record).unplug(slot, timeout, force=force)
    except BaseException:
        context.store.begin(record, "")
        raise


def is_detaching(record: Record) -> bool:
    """Whether a device was being taken from it when a command was killed."""
    return record.doing.startswith(_DETACHING)


def settle_detached(context: MachineContext, record: Record) -> Record:
    """Note whether the device is the machine's; its new record.

    Raises:
        EngineError: its process does not answer.
    """
    slot = int(record.doing.removeprefix(_DETACHING))
    if slot in context.instance(record).plugged():
        context.last = context.store.begin(record, "")
        return context.last
    spec = context.spec
    left = spec.changed(
        disks=tuple(disk for disk in spec.disks if disk.slot != slot),
        nics=tuple(nic for nic in spec.nics if nic.slot != slot),
    )
    card = context.store.cards_of(context.id).get(slot + 1)
    if card is not None:
        disconnect_nic(context, card)
    gone = sum(disk.size or 0 for disk in spec.data_disks if disk.own and disk.slot == slot)
    promised = context.store.promised_to(record).get(Resource.DISK, 0)
    claim = Claim({Resource.DISK: max(0, promised - gone)}, {}) if gone else None
    detail = f"the device in slot {slot} detached"
    context.store.change_spec(record, left.model_dump_json(), detail, claim)
    context.last = context.store.get(context.id)
    return context.last
