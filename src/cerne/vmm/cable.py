"""The cable of a network card: its link, watched by the loop for as long as the card wants it."""

from __future__ import annotations

import socket

from cerne.devices.virtio.net.device import NetDevice
from cerne.devices.virtio.net.link import Link
from cerne.devices.virtio.net.stream import StreamLink
from cerne.devices.virtio.net.tap import TapLink
from cerne.vmm.config import LinkKind, NicConfig
from cerne.vmm.loop import Loop


class Cable:
    """A card and its link. Call `update` after whatever may change what the card wants."""

    def __init__(self, loop: Loop, nic: NicConfig) -> None:
        self._loop = loop
        self._link = _link(nic)
        self._gone = False
        mac = bytes.fromhex(nic.mac.replace(":", ""))
        self.card = NetDevice(mac, self._link, on_change=lambda: loop.ask(self.update), mtu=nic.mtu)
        self.update()

    def update(self) -> None:
        """Watch the link for what the card wants now; on the loop's thread."""
        if self._gone:
            return
        readable = self.card.receive if self.card.wants_read else None
        writable = self.card.flush if self.card.wants_write else None
        self._loop.watch(self._link.fileno(), readable, writable)

    def pull_out(self) -> None:
        """Pull the cable out of a card that is gone; on the loop's thread."""
        self._loop.watch(self._link.fileno(), None)
        self._gone = True
        self._link.close()

    def close(self) -> None:
        """Pull the cable out; the loop must not run any more."""
        self._link.close()


def _link(nic: NicConfig) -> Link:
    if nic.kind is LinkKind.TAP:
        return TapLink(nic.link)
    return StreamLink(socket.socket(fileno=nic.link))
