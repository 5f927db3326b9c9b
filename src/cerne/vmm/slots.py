"""The slots of a machine that disks and network cards come to and go from while it runs.

What is plugged in is seen by the guest at once. What is to go is asked of the guest, and pulled out
once it has let go of it; without being asked it is surprised, as by a drive that somebody pulls.
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
from cerne.vmm.loop import Loop
from cerne.vmm.pci_host import PciHost
from cerne.vmm.slot_names import device_name

Emit = Callable[[str, Mapping[str, object]], None]
"""Tells whoever is at the control socket of an event."""


class Slots:
    """The slots of one machine, from 0 on; used on the loop's thread."""

    def __init__(self, board: Board, loop: Loop, pci: PciHost, emit: Emit) -> None:
        self._pci = pci
        self._emit = emit
        self._taken: dict[int, Callable[[], None]] = {}
        self._registers = PciHotplug(
            signal=partial(board.power.signal, PCI_CHANGED),
            eject=lambda place: loop.ask(partial(self._ejected, place)),
            refuse=lambda place: loop.ask(partial(self._refused, place)),
        )
        self._at_power_on = self._registers.state()
        board.buses.ports.insert(layout.HOTPLUG_PORT, REGISTERS, self._registers)

    @property
    def taken(self) -> list[int]:
        """The slots that have something in them."""
        return sorted(self._taken)

    def add(self, slot: int, device: VirtioDevice, gone: Callable[[], None]) -> None:
        """Have a device in a slot from the start; `gone` is called once it is pulled out."""
        self._pci.add(device, _place(slot))
        self._taken[slot] = gone

    def require_free(self, slot: int) -> None:
        """Refuse a slot that has something in it.

        Raises:
            ConflictError: it has.
        """
        if slot in self._taken:
            raise ConflictError(f"there is a device {device_name(slot)} already")

    def announce(self, slot: int) -> None:
        """Tell the guest of a device that was added while it ran."""
        self._registers.plugged(_place(slot))

    def ask_back(self, slot: int) -> None:
        """Ask the guest to let go of a device; an event tells what comes of it.

        Raises:
            NotFoundError: there is none.
        """
        self._require_taken(slot)
        self._registers.ask_back(_place(slot))

    def keep(self, slot: int) -> None:
        """Ask no longer: the guest's letting go of it, should it come now, is not heeded.

        Raises:
            NotFoundError: there is none.
        """
        self._require_taken(slot)
        self._registers.forget(_place(slot))

    def pull(self, slot: int) -> None:
        """Pull a device out, whether the guest has let go of it or not.

        Raises:
            NotFoundError: there is none.
        """
        self._require_taken(slot)
        self._registers.forget(_place(slot))
        self._pci.remove(_place(slot))
        self._taken.pop(slot)()
        self._emit("DEVICE_DELETED", {"device": device_name(slot)})

    def power_on(self) -> None:
        """Nothing has a driver now: pull out what the guest was asked for, and forget the rest."""
        asked = self._registers.asked
        self._registers.restore(self._at_power_on)
        for place in asked:
            self._ejected(place)

    def state(self) -> PlainState:
        """What the guest has not been told, and what it was asked; no vCPU may be running."""
        return self._registers.state()

    def restore(self, state: PlainState) -> None:
        """Be what `state` says; raises DamagedError where that cannot be."""
        self._registers.restore(state)

    def _ejected(self, place: int) -> None:
        # It may have been pulled out since.
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
