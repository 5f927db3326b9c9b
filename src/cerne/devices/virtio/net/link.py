"""The interface of a network card's link, the host's end of its cable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cerne.devices.virtio.buffers import Views


class LinkLostError(Exception):
    """The other end has gone; the card's link is down from now on."""


class Link(Protocol):
    """A link, which never waits; frames have a virtio_net_hdr before them, both ways."""

    @property
    def features(self) -> int:
        """The offloads that a card may offer on it, as feature bits."""

    @property
    def wants_write(self) -> bool:
        """Whether it has no room for a frame; `flush` is called when its descriptor is writable."""

    def fileno(self) -> int:
        """The descriptor to wait on."""

    def set_offloads(self, offloads: int) -> None:
        """Set the features GUEST_* that received frames may use.

        Raises:
            LinkLostError: the other end has gone.
        """

    def send(self, header: bytes, frame: Views) -> bool:
        """Send a frame with a checked header; return False if there is no room now.

        Raises:
            LinkLostError: the other end has gone.
        """

    def flush(self) -> bool:
        """Send waiting data; return True if nothing waits any more.

        Raises:
            LinkLostError: the other end has gone.
        """

    def read(self, buffers: Sequence[memoryview]) -> int:
        """Read one frame, its header first; return its size, or 0 if there is none now.

        The buffers have room for the largest frame. Bytes after the frame's end may change.

        Raises:
            LinkLostError: the other end has gone.
        """

    def close(self) -> None:
        """Close the link."""
