"""The link of a network card, which the loop watches while the card needs it."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable

from cerne.devices.virtio.net.device import NetDevice, NetLimits
from cerne.devices.virtio.net.kernel import KernelBackend, KernelNetDevice
from cerne.devices.virtio.net.stream import StreamLink
from cerne.devices.virtio.net.tap import TapLink
from cerne.errors import HostError
from cerne.kvm.vhost import VhostNet
from cerne.vmm.config import LinkKind, NicConfig
from cerne.vmm.loop import Loop


class Cable:
    """A card and its link. Call `update` after each change of what the card waits for."""

    def __init__(self, loop: Loop, nic: NicConfig, limits: NetLimits | None = None) -> None:
        self._loop = loop
        self._nic = nic
        self._gone = self._lost = False
        self.card = _card(nic, lambda: loop.ask(self.update), limits)
        self._link = self.card.link
        self.update()

    @property
    def is_of_kernel(self) -> bool:
        """Whether the host's kernel moves its frames, which nothing here limits."""
        return isinstance(self.card, KernelNetDevice)

    def pause(self) -> None:
        """Stop the card's writes to the guest's memory."""
        if isinstance(self.card, KernelNetDevice):
            self.card.pause()

    def resume(self) -> None:
        """Let the card work again."""
        if isinstance(self.card, KernelNetDevice):
            self.card.resume()

    def update(self) -> None:
        """Watch the link for what the card waits for now; on the loop's thread."""
        if self._gone:
            return
        if not self.card.link_up:
            self._loop.watch(self._link.fileno(), None)
            if not self._lost:
                self._lost = True
                print(f"{self._nic.mac} has lost its link", file=sys.stderr, flush=True)
            return
        readable = self.card.receive if self.card.wants_read else None
        writable = self.card.flush if self.card.wants_write else None
        self._loop.watch(self._link.fileno(), readable, writable)

    def pull_out(self) -> None:
        """Close the link of a removed card; on the loop's thread."""
        self._loop.watch(self._link.fileno(), None)
        self._gone = True
        self.close()

    def close(self) -> None:
        """Close the link; the loop must have ended."""
        self._link.close()
        if isinstance(self.card, KernelNetDevice):
            self.card.close()


def _card(nic: NicConfig, on_change: Callable[[], None], limits: NetLimits | None) -> NetDevice:
    mac = bytes.fromhex(nic.mac.replace(":", ""))
    if nic.kind is LinkKind.STREAM:
        link = StreamLink(socket.socket(fileno=nic.link))
        return NetDevice(mac, link, on_change, mtu=nic.mtu, limits=limits)
    tap = TapLink(nic.link)
    backend = None if nic.vhost is None else _kernel_backend(nic.vhost, nic.link)
    if backend is None:
        return NetDevice(mac, tap, on_change, mtu=nic.mtu, limits=limits)
    return KernelNetDevice(mac, tap, backend, on_change, mtu=nic.mtu)


def _kernel_backend(descriptor: int, tap: int) -> KernelBackend | None:
    """The kernel's vhost-net, if it works; without it the card is slower."""
    vhost = VhostNet(descriptor)
    try:
        return KernelBackend(vhost, tap)
    except HostError as error:
        vhost.close()
        print(f"vhost-net is not used: {error.message}", file=sys.stderr, flush=True)
        return None
