"""One connection of the socket device: who may still send, how much, and what is on its way.

What the guest sends goes straight into the host's socket; what that does not take is kept, never
more than the guest was told that there is room for. What the host sends stays in its socket until
the guest has room: that is each side's credit (virtio 1.2, section 5.10.6.3).
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Sequence
from typing import NamedTuple

from cerne.devices.virtio.buffers import Views, gather, size_of, split
from cerne.devices.virtio.vsock.packet import Header, Shutdown

BUFFER = 128 * 1024
"""Bytes that are kept of what the guest sends, if the host's program is slow."""

_ANNOUNCED_AT_ONCE = BUFFER // 4
_MODULUS = 1 << 32


class Key(NamedTuple):
    """What tells connections of one guest apart."""

    host_port: int
    guest_port: int
    kind: int


class Connection:
    """A connection, and the host's end of it: a connected, non-blocking stream socket."""

    def __init__(self, key: Key, link: socket.socket, *, answered: bool) -> None:
        self.key = key
        self.link = link
        self.answered = answered
        """False while the guest has not said whether it wants a connection that the host began."""
        self.ended = False
        self.wanted = (False, False)
        """Whether to call the device when the socket can be read, and when it can be written."""
        self.credit_asked = False
        """Whether the guest was asked for room since it last had some."""
        self._outgoing = bytearray()
        self._received = 0
        self._announced = 0
        self._guest_buffer = 0
        self._guest_forwarded = 0
        self._sent = 0
        self._guest_shut = Shutdown.NONE
        self._host_shut = Shutdown.NONE
        self._told = Shutdown.NONE

    @property
    def credit(self) -> int:
        """Bytes that the guest has room for; none where what it says of that cannot be."""
        on_the_way = (self._sent - self._guest_forwarded) % _MODULUS
        return max(0, self._guest_buffer - on_the_way)

    @property
    def forwarded(self) -> int:
        """Bytes of the guest's that have left the buffer here, modulo 2^32."""
        return (self._received - len(self._outgoing)) % _MODULUS

    @property
    def host_is_heard(self) -> bool:
        """Whether more may come from the host that the guest wants to have."""
        shut = self._host_shut & Shutdown.SEND or self._guest_shut & Shutdown.RECEIVE
        return self.answered and not self.ended and not shut

    @property
    def drained(self) -> bool:
        """Whether the host's socket has taken everything that the guest sent."""
        return not self._outgoing

    @property
    def guest_left(self) -> bool:
        """Whether the guest will neither send nor receive any more."""
        return self._guest_shut == Shutdown.BOTH

    @property
    def guest_finished(self) -> bool:
        """Whether the guest will send no more, so that what it sent is whole."""
        return bool(self._guest_shut & Shutdown.SEND)

    @property
    def announcement_is_due(self) -> bool:
        """Whether the guest is to be told of room that it does not know of."""
        return (self.forwarded - self._announced) % _MODULUS >= _ANNOUNCED_AT_ONCE

    def announce(self) -> int:
        """What `forwarded` is, which the guest is told now."""
        self._announced = self.forwarded
        return self._announced

    def note_credit(self, header: Header) -> None:
        """Remember the room that the guest says it has."""
        self._guest_buffer = header.buffer
        self._guest_forwarded = header.forwarded
        if self.credit:
            self.credit_asked = False

    def take(self, data: Views) -> bool:
        """Pass on what the guest sent; False where it may not send that, or not so much."""
        size = size_of(data)
        if self.guest_finished or size > BUFFER - len(self._outgoing):
            return False
        sent = self._send(data) if self.drained else 0
        self._received += size
        if not self._host_shut & Shutdown.RECEIVE:
            self._outgoing += gather(split(data, sent)[1])
        return True

    def flush(self) -> None:
        """Give the host's socket what waits for it, as far as it takes it."""
        while self._outgoing:
            sent = self._send((self._outgoing,))
            del self._outgoing[:sent]
            if not sent:
                break
        if self._host_shut & Shutdown.RECEIVE:
            self._outgoing.clear()
        if self.guest_finished and self.drained:
            self._shut_link(socket.SHUT_WR)

    def fill(self, room: Views) -> int:
        """Fill guest memory with what the host sent; 0 at its end.

        Raises:
            BlockingIOError: there is nothing now.
            OSError: the connection is broken.
        """
        size = self.link.recvmsg_into(room)[0]
        self._sent += size
        return size

    def shut_by_guest(self, flags: int) -> None:
        """The guest will do that no more."""
        self._guest_shut |= Shutdown(flags & Shutdown.BOTH)
        if self._guest_shut & Shutdown.RECEIVE:
            self._shut_link(socket.SHUT_RD)
        self.flush()

    def reset_by_guest(self) -> None:
        """The guest knows the connection no more."""
        self._guest_shut = Shutdown.BOTH

    def shut_by_host(self) -> None:
        """The host will send no more, nor receive, if it has gone."""
        self._host_shut |= Shutdown.SEND
        gone = select.poll()
        gone.register(self.link, 0)
        if any(event & select.POLLHUP for _, event in gone.poll(0)):
            self._host_shut |= Shutdown.RECEIVE
            self._outgoing.clear()

    def untold_shutdown(self) -> Shutdown:
        """What the host does no more, where the guest was not told all of it; it is told now."""
        untold = self._host_shut & ~self._told
        self._told = self._host_shut
        return self._host_shut if untold else Shutdown.NONE

    def _send(self, data: Sequence[memoryview | bytearray]) -> int:
        try:
            return self.link.sendmsg(data, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            # Nobody reads there any more. What was written there may still be read.
            self._host_shut |= Shutdown.RECEIVE
            return 0

    def _shut_link(self, how: int) -> None:
        # It may be gone altogether.
        with contextlib.suppress(OSError):
            self.link.shutdown(how)
