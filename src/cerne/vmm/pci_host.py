"""The PCI bus of a board: the addresses of its functions' memory, and their doorbells.

A doorbell is an ioeventfd: at the guest's write the kernel writes an eventfd, and the vCPU goes on
without leaving the kernel. The loop's thread then serves the queue, or a thread of the device, or a
backend. Only the loop's thread adds and removes functions; guests' accesses may happen meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

from cerne.arch.x86 import layout
from cerne.devices.bus import OverlapError
from cerne.devices.pci.function import PciFunction
from cerne.devices.pci.root import CONFIG_PORT, CONFIG_PORT_COUNT, ECAM_BUS_SIZE, PciRoot
from cerne.devices.state import PlainState, SavedState
from cerne.devices.virtio.device import VirtioDevice
from cerne.devices.virtio.transport import BAR_SIZE, VirtioPciTransport
from cerne.errors import DamagedError
from cerne.vmm.board import Board
from cerne.vmm.interrupts import Interrupts, MessageVectors
from cerne.vmm.loop import Loop

_ANY_LENGTH = 0


class _Window:
    """The memory behind a BAR, on the memory bus."""

    def __init__(self, function: PciFunction, bar: int) -> None:
        self._function = function
        self._bar = bar

    def read(self, offset: int, size: int) -> int:
        return self._function.read_bar(self._bar, offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self._function.write_bar(self._bar, offset, size, value)


class Watcher(Protocol):
    """Waits for doorbells, and serves the queues on its thread."""

    def watch(self, descriptor: int, readable: Callable[[], None] | None) -> None:
        """Call back while a descriptor is readable; without a function, forget it."""


class _Wiring(NamedTuple):
    """The host's resources of a function."""

    vectors: MessageVectors
    bells: list[int]
    watcher: Watcher


class PciHost:
    """Adds virtio devices to a board, and removes them."""

    def __init__(self, board: Board, loop: Loop) -> None:
        self._board = board
        self._loop = loop
        self._interrupts = Interrupts(board.vm)
        self._root = PciRoot(self, layout.FIRST_HOTPLUG_SLOT)
        self._wirings: dict[PciFunction, _Wiring] = {}
        self._places: dict[tuple[PciFunction, int], int] = {}
        board.buses.ports.insert(CONFIG_PORT, CONFIG_PORT_COUNT, self._root.ports)
        board.buses.memory.insert(layout.ECAM_START, ECAM_BUS_SIZE, self._root.ecam)

    def add(
        self, device: VirtioDevice, slot: int | None = None, watcher: Watcher | None = None
    ) -> None:
        """Add a device, with an address for its memory and with its doorbells.

        Without a `watcher` the loop serves it. A watcher with a thread must have stopped it here
        and in `remove`.
        """
        watcher = watcher or self._loop
        vectors = MessageVectors(self._interrupts, len(device.queue_sizes) + 1)
        bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in device.queue_sizes]
        transport = VirtioPciTransport(device, self._board.memory, vectors, bells)
        self._wirings[transport] = _Wiring(vectors, bells, watcher)
        for queue, bell in enumerate(bells):
            if queue not in device.handed_queues:
                watcher.watch(bell, _answer(transport, queue, bell))
        self.add_function(transport, slot)

    def add_function(self, function: PciFunction, slot: int | None = None) -> None:
        """Add a function, with an address for its memory."""
        chosen = self._root.free_slot() if slot is None else slot
        _place(function, chosen)
        self._root.add(function, chosen)

    def remove(self, slot: int) -> None:
        """Remove the device in a slot, and release all of its resources of the host.

        The device forgets its driver, so that no part of it works any more.
        """
        function = self._root.remove(slot)
        assert isinstance(function, VirtioPciTransport)
        function.reset()
        wiring = self._wirings.pop(function)
        for bell in wiring.bells:
            wiring.watcher.watch(bell, None)
            os.close(bell)
        wiring.vectors.withdraw()

    def state(self) -> PlainState:
        """The state of the bus and of every function on it; no vCPU may be running."""
        functions = {
            str(slot): _function_state(function) for slot, function in self._root.functions.items()
        }
        return {"ports": self._root.ports.state(), "functions": functions}

    def restore(self, state: PlainState) -> None:
        """Restore `state`, with the same devices present.

        Raises:
            DamagedError: the state is not valid.
        """
        saved = SavedState("the PCI bus", state)
        self._root.ports.restore(saved.plain("ports"))
        functions = saved.section("functions")
        if set(functions) != {str(slot) for slot in self._root.functions}:
            raise DamagedError("the saved machine has other devices than this one")
        for slot, function in self._root.functions.items():
            _restore_function(function, functions.plain(str(slot)))

    def rouse(self) -> None:
        """Serve every queue, and send an interrupt for every queue, after a restore.

        The state does not contain the events that were pending in an eventfd.
        """
        for function in self._root.functions.values():
            if isinstance(function, VirtioPciTransport):
                function.rouse()

    def power_off(self) -> None:
        """Make every function forget its driver, while the board still has the old VM."""
        for function in self._root.functions.values():
            function.power_on()

    def power_on(self) -> None:
        """Return to the state of power-on, in the board's new VM; after `power_off`."""
        self._root.ports.power_on()
        self._interrupts.power_on(self._board.vm)
        for wiring in self._wirings.values():
            wiring.vectors.power_on()
        for slot, function in self._root.functions.items():
            _place(function, slot)

    def close(self) -> None:
        """Close the eventfds; the loop must have ended."""
        for wiring in self._wirings.values():
            wiring.vectors.close()
            for bell in wiring.bells:
                os.close(bell)

    def map(self, function: PciFunction, bar: int, address: int, size: int) -> bool:
        """Map a function's memory at an address; called by the function.

        Returns False if other memory of the bus is there.
        """
        try:
            self._board.buses.memory.insert(address, size, _Window(function, bar))
        except OverlapError:
            return False
        self._places[function, bar] = address
        for bell, place in self._bells(function, address):
            self._board.vm.ioeventfd(bell, place, _ANY_LENGTH)
        return True

    def unmap(self, function: PciFunction, bar: int) -> None:
        """Unmap it; called by the function."""
        address = self._places.pop((function, bar))
        self._board.buses.memory.remove(address)
        for bell, place in self._bells(function, address):
            self._board.vm.deassign_ioeventfd(bell, place, _ANY_LENGTH)

    def _bells(self, function: PciFunction, address: int) -> list[tuple[int, int]]:
        if not isinstance(function, VirtioPciTransport):
            return []
        bells = enumerate(self._wirings[function].bells)
        return [(bell, address + function.notify_offset(queue)) for queue, bell in bells]


def _place(function: PciFunction, slot: int) -> None:
    """Give a function's memory an address, as firmware does."""
    for bar in function.bars:
        function.place(bar.number, layout.PCI_WINDOW_START + slot * BAR_SIZE)


def _function_state(function: PciFunction) -> PlainState:
    if isinstance(function, VirtioPciTransport):
        return function.state()
    return function.config_state()


def _restore_function(function: PciFunction, state: PlainState) -> None:
    if isinstance(function, VirtioPciTransport):
        function.restore(state)
    else:
        function.restore_config(state)


def _answer(transport: VirtioPciTransport, queue: int, bell: int) -> Callable[[], None]:
    def answer() -> None:
        os.eventfd_read(bell)
        transport.kick(queue)

    return answer
