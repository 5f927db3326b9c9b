"""The host's side of a machine's memory device: its QMP commands, event and property.

They are QEMU's (``qapi/machine.json``), so that one client serves both engines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerne.devices.virtio.mem import MemDevice
from cerne.errors import HostError, InputError
from cerne.kvm.memory import BLOCK_SIZE
from cerne.units import counted
from cerne.vmm.board import Board
from cerne.vmm.slots import Emit

if TYPE_CHECKING:
    from cerne.vmm.qmp import Request

QOM_PATH = "/machine/peripheral/memory"
REQUESTED = "requested-size"

_NAME = "memory"
_EVENT = "MEMORY_DEVICE_SIZE_CHANGE"
_MOST_BYTES = (1 << 52) - 1


class MemoryPlug:
    """A memory device, if the memory of the board has room for blocks."""

    def __init__(self, board: Board, emit: Emit) -> None:
        self._board = board
        self._emit = emit
        self.device = MemDevice(board.memory, self._plug, self._unplug, self._changed)

    @property
    def present(self) -> bool:
        """Whether the machine has the device."""
        return self._board.memory.room[1] > 0

    def qmp_query_memory_size_summary(self, _: Request) -> object:
        """``query-memory-size-summary``: the memory since power-on, and what is plugged."""
        return {
            "base-memory": self._board.memory.fixed_size,
            "plugged-memory": self.device.plugged,
        }

    def qmp_query_memory_devices(self, _: Request) -> object:
        """``query-memory-devices``: the device, if the machine has it."""
        if not self.present:
            return []
        start, size = self._board.memory.room
        data = {
            "id": _NAME,
            "memaddr": start,
            "requested-size": self.device.requested,
            "size": self.device.plugged,
            "max-size": size,
            "block-size": BLOCK_SIZE,
            "node": 0,
            "memdev": _NAME,
        }
        return [{"type": "virtio-mem", "data": data}]

    def qmp_qom_set(self, request: Request) -> object:
        """``qom-set``: the bytes that the guest should have in addition."""
        name = request.arguments.text("property", 256)
        size = request.arguments.integer("value", _MOST_BYTES)
        if name != REQUESTED or not self.present:
            raise InputError(f"{QOM_PATH} has no property {name}")
        if size % BLOCK_SIZE or size > self._board.memory.room[1]:
            raise InputError(
                f"a size of {counted(size, 'byte')} is not one that this machine can have in"
                " addition"
            )
        self.device.request(size)
        return {}

    def _plug(self, block: int) -> None:
        memory = self._board.memory
        memory.plug(block)
        try:
            self._board.vm.plug_block(memory, block)
        except HostError:
            memory.unplug(block)
            raise

    def _unplug(self, block: int) -> None:
        memory = self._board.memory
        self._board.vm.unplug_block(block)
        try:
            memory.unplug(block)
        except HostError:
            self._board.vm.plug_block(memory, block)
            raise

    def _changed(self) -> None:
        size = self.device.plugged
        self._emit(_EVENT, {"id": _NAME, "size": size, "qom-path": QOM_PATH})
