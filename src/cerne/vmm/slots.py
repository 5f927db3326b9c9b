"""The slots for disks and network cards that are added and removed while a machine runs.

The guest sees an added device at once. To remove a device, the guest is asked, and the device is
removed after the guest has released it; a removal without asking surprises the guest, like a pulled
drive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from cerne.arch.x86 import layout
from cerne.devices.pci.hotplug import REGISTERS, PciHotplug
from cerne.devices.power import PCI_CHANGED
from cerne.devices.state import PlainState
from cerne.devices.virtio.device import VirtioDevice
from cerne.errors import ConflictError, NotFoundError
from cerne.vmm.board import Board
from cerne.vmm.loop import Loop, Ready
from cerne.vmm.pci_host import PciHost, Watcher
from cerne.vmm.slot_names import device_name

Emit = Callable[[str, Mapping[str, object]], None]
"""Sends an event to all clients of the control socket."""


class Slots:
    """The slots of one machine, from 0 on; used only on the loop's thread."""

    def __init__(
        self,
        board: Board,
        loop: Loop,
        pci: PciHost,
        emit: Emit,
        after_rest: Callable[[int, Ready], None],
    ) -> None:
        """Make empty slots; `after_rest` calls a function when the device in a slot rests."""
        self._pci = pci
        self._after_rest = after_rest
        self._emit = emit
        self._taken: dict[int, Callable[[], None]] = {}
        self._registers = PciHotplug(
            signal=partial(board.power.signal, PCI_CHANGED),
            eject=lambda place: loop.ask(partial(self._eject, place)),
            refuse=lambda place: loop.ask(partial(self._refused, place)),
        )
        self._at_power_on = self._registers.state()
        board.buses.ports.insert(layout.HOTPLUG_PORT, REGISTERS, self._registers)

    @property
    def taken(self) -> list[int]:
        """The slots that are not empty."""
        return sorted(self._taken)

    def add(
        self,
        slot: int,
        device: VirtioDevice,
        gone: Callable[[], None],
        watcher: Watcher | None = None,
    ) -> None:
        """Put a device into a slot at the start; `gone` is called after its removal."""
        self._pci.add(device, _place(slot), watcher)
        self._taken[slot] = gone

    def require_free(self, slot: int) -> None:
        """Refuse a slot that is not empty.

        Raises:
            ConflictError: it is not empty.
        """
        if slot in self._taken:
            raise ConflictError(f"there is a device {device_name(slot)} already")

    def announce(self, slot: int) -> None:
        """Notify the guest of a device that was added while it ran."""
        self._registers.plugged(_place(slot))

    def ask_back(self, slot: int) -> None:
        """Ask the guest to release a device; an event reports the result.

        Raises:
            NotFoundError: the slot is empty.
        """
        self._require_taken(slot)
        self._registers.ask_back(_place(slot))

    def keep(self, slot: int) -> None:
        """Cancel the request: if the guest releases the device now, the device stays.

        Raises:
            NotFoundError: the slot is empty.
        """
        self._require_taken(slot)
        self._registers.forget(_place(slot))

    def pull(self, slot: int) -> None:
        """Remove a device, which rests, even if the guest has not released it.

        Raises:
            NotFoundError: the slot is empty.
        """
        self._require_taken(slot)
        self._registers.forget(_place(slot))
        self._pci.remove(_place(slot))
        self._taken.pop(slot)()
        self._emit("DEVICE_DELETED", {"device": device_name(slot)})

    def power_on(self) -> None:
        """After a reset, when no device has a driver, remove the devices that were asked for.

        They rest.
        """
        asked = self._registers.asked
        self._registers.restore(self._at_power_on)
        for place in asked:
            self._ejected(place)

    def state(self) -> PlainState:
        """The pending notifications and requests; no vCPU may be running."""
        return self._registers.state()

    def restore(self, state: PlainState) -> None:
        """Restore `state`; raises DamagedError if it is not valid."""
        self._registers.restore(state)

    def _eject(self, place: int) -> None:
        slot = place - layout.FIRST_HOTPLUG_SLOT
        self._after_rest(slot, partial(self._ejected, place))

    def _ejected(self, place: int) -> None:
        # The device may have been removed meanwhile.
        slot = place - layout.FIRST_HOTPLUG_SLOT
        if slot in self._taken:
            self.pull(slot)

    def _refused(self, place: int) -> None:
        name = device_name(place - layout.FIRST_HOTPLUG_SLOT)
        self._emit("DEVICE_UNPLUG_GUEST_ERROR", {"device": name, "path": name})

    def _require_taken(self, slot: int) -> None:
        if slot not in self._taken:
            raise NotFoundError(f"there is no device {device_name(slot)}")


def _place(slot: int) -> int:
    return layout.FIRST_HOTPLUG_SLOT + slot
