"""What a network card asks of its link: the host's end of its cable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cerne.devices.virtio.buffers import Views


class LinkLostError(Exception):
    """The other end has gone for good; the card's link is down from now on."""


class Link(Protocol):
    """A link, which never waits; frames have a virtio_net_hdr before them, both ways."""

    @property
    def features(self) -> int:
        """The offloads that a card may offer on it, as feature bits."""

    @property
    def wants_write(self) -> bool:
        """Whether it can take no frame now; `flush` is called when its descriptor takes more."""

    def fileno(self) -> int:
        """The descriptor to wait on."""

    def set_offloads(self, offloads: int) -> None:
        """Which of the features GUEST_* the frames that are read may make use of.

        Raises:
            LinkLostError: the other end has gone.
        """

    def send(self, header: bytes, frame: Views) -> bool:
        """Send a frame whose header was checked; False where it cannot be taken now.

        Raises:
            LinkLostError: the other end has gone.
        """

    def flush(self) -> bool:
        """Send on what waits, if anything does; whether nothing does any more.

        Raises:
            LinkLostError: the other end has gone.
        """

    def read(self, buffers: Sequence[memoryview]) -> int:
        """Read one frame, its header first; its size, or 0 where there is none now.

        The buffers have room for the largest frame. What is after the frame's end may be changed.

        Raises:
            LinkLostError: the other end has gone.
        """

    def close(self) -> None:
        """Pull the cable out."""
