"""The cable of a network card: its socket, watched by the loop for as long as the card wants it."""

from __future__ import annotations

import socket

from cerne.devices.virtio.net import NetDevice
from cerne.vmm.loop import Loop


class Cable:
    """Plugs a socket into a card. Call `update` after whatever may change what the card wants."""

    def __init__(self, loop: Loop, link: socket.socket, mac: bytes) -> None:
        self._loop = loop
        self._link = link
        self._gone = False
        link.setblocking(False)
        self.card = NetDevice(mac, link, on_change=lambda: loop.ask(self.update))
        self.update()

    def update(self) -> None:
        """Watch the socket for what the card wants now; on the loop's thread."""
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
