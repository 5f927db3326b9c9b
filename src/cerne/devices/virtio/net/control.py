"""The commands on the control queue (virtio 1.2, section 5.1.6.5).

A card gives its guest every frame of its link, so filters need no work: they are hints of the
driver, and a card may pass more frames. A malformed command is answered with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cerne.devices.virtio.net.header import GUEST_OFFLOADS, Feature

LARGEST_COMMAND = 16384
"""The most bytes of a command; tables of addresses are the longest."""

_RX, _MAC, _VLAN, _OFFLOADS = 0, 1, 2, 5
_RX_MODES = (0, 1)
_MAC_TABLE_SET, _MAC_ADDRESS_SET = 0, 1
_VLAN_ADD, _VLAN_DELETE = 0, 1
_MAC_SIZE = 6
_LARGEST_VLAN = 4095


class Control(NamedTuple):
    """Executes commands, with the card's `set_mac` and `set_offloads`."""

    features: int
    """The negotiated features."""
    set_mac: Callable[[bytes], None]
    set_offloads: Callable[[int], None]

    def obey(self, command: bytes) -> bool:
        """Execute a command; return False if it is not valid."""
        if len(command) < 2:
            return False
        kind, action, data = command[0], command[1], command[2:]
        if kind == _RX and self.features & Feature.CTRL_RX:
            return action in _RX_MODES and len(data) == 1
        if kind == _MAC and action == _MAC_TABLE_SET and self.features & Feature.CTRL_RX:
            return _are_tables(data)
        if kind == _MAC and action == _MAC_ADDRESS_SET and self.features & Feature.CTRL_MAC_ADDR:
            return self._new_mac(data)
        if kind == _VLAN and self.features & Feature.CTRL_VLAN:
            return action in (_VLAN_ADD, _VLAN_DELETE) and _is_vlan(data)
        if kind == _OFFLOADS and action == 0 and self.features & Feature.CTRL_GUEST_OFFLOADS:
            return self._new_offloads(data)
        return False

    def _new_mac(self, data: bytes) -> bool:
        if len(data) != _MAC_SIZE or data[0] & 1:
            return False
        self.set_mac(data)
        return True

    def _new_offloads(self, data: bytes) -> bool:
        offloads = int.from_bytes(data, "little")
        if len(data) != 8 or offloads & ~(self.features & GUEST_OFFLOADS):
            return False
        self.set_offloads(offloads)
        return True


def _are_tables(data: bytes) -> bool:
    """Whether the data is two tables of addresses, each after its length."""
    for _ in range(2):
        size = 4 + _MAC_SIZE * int.from_bytes(data[:4], "little")
        if len(data) < 4 or len(data) < size:
            return False
        data = data[size:]
    return not data


def _is_vlan(data: bytes) -> bool:
    return len(data) == 2 and int.from_bytes(data, "little") <= _LARGEST_VLAN
