"""One connection of the socket device: its two directions, its credit and its buffer.

The guest's data goes directly into the host's socket; the rest is kept, at most the room that the
guest knows of. The host's data stays in its socket until the guest has room. This room is each
side's credit (virtio 1.2, section 5.10.6.3).
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
"""The most bytes that are kept for a slow program of the host."""

_ANNOUNCED_AT_ONCE = BUFFER // 4
_MODULUS = 1 << 32


class Key(NamedTuple):
    """The identity of a connection of one guest."""

    host_port: int
    guest_port: int
    kind: int


class Connection:
    """A connection, and the host's end of it: a connected, non-blocking stream socket."""

    def __init__(self, key: Key, link: socket.socket, *, answered: bool) -> None:
        self.key = key
        self.link = link
        self.answered = answered
        """False until the guest accepts a connection that the host began."""
        self.ended = False
        self.wanted = (False, False)
        """Whether to call the device when the socket is readable, and when it is writable."""
        self.credit_asked = False
        """Whether the guest was asked for its credit since it last had any."""
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
        """Bytes that the guest has room for; 0 if its numbers are not valid."""
        on_the_way = (self._sent - self._guest_forwarded) % _MODULUS
        return max(0, self._guest_buffer - on_the_way)

    @property
    def forwarded(self) -> int:
        """Bytes from the guest that have left the buffer here, modulo 2^32."""
        return (self._received - len(self._outgoing)) % _MODULUS

    @property
    def host_is_heard(self) -> bool:
        """Whether the host may still send, and the guest receives."""
        shut = self._host_shut & Shutdown.SEND or self._guest_shut & Shutdown.RECEIVE
        return self.answered and not self.ended and not shut

    @property
    def drained(self) -> bool:
        """Whether the host's socket has taken all of the guest's data."""
        return not self._outgoing

    @property
    def guest_left(self) -> bool:
        """Whether the guest has closed both directions."""
        return self._guest_shut == Shutdown.BOTH

    @property
    def guest_finished(self) -> bool:
        """Whether the guest has closed its sending direction, so that its data is complete."""
        return bool(self._guest_shut & Shutdown.SEND)

    @property
    def announcement_is_due(self) -> bool:
        """Whether the guest needs news of room here."""
        return (self.forwarded - self._announced) % _MODULUS >= _ANNOUNCED_AT_ONCE

    def announce(self) -> int:
        """The value of `forwarded`, which the guest gets now."""
        self._announced = self.forwarded
        return self._announced

    def note_credit(self, header: Header) -> None:
        """Remember the room that the guest announces."""
        self._guest_buffer = header.buffer
        self._guest_forwarded = header.forwarded
        if self.credit:
            self.credit_asked = False

    def take(self, data: Views) -> bool:
        """Forward the guest's data; return False if it may not send, or not so much."""
        size = size_of(data)
        if self.guest_finished or size > BUFFER - len(self._outgoing):
            return False
        sent = self._send(data) if self.drained else 0
        self._received += size
        if not self._host_shut & Shutdown.RECEIVE:
            self._outgoing += gather(split(data, sent)[1])
        return True

    def flush(self) -> None:
        """Write waiting data to the host's socket, as far as it takes it."""
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
        """Fill guest memory with the host's data; return 0 at its end.

        Raises:
            BlockingIOError: there is no data now.
            OSError: the connection is broken.
        """
        size = self.link.recvmsg_into(room)[0]
        self._sent += size
        return size

    def shut_by_guest(self, flags: int) -> None:
        """Note that the guest has closed these directions."""
        self._guest_shut |= Shutdown(flags & Shutdown.BOTH)
        if self._guest_shut & Shutdown.RECEIVE:
            self._shut_link(socket.SHUT_RD)
        self.flush()

    def reset_by_guest(self) -> None:
        """Note that the guest has reset the connection."""
        self._guest_shut = Shutdown.BOTH

    def shut_by_host(self) -> None:
        """Note that the host has closed its sending direction, or both if it has gone."""
        self._host_shut |= Shutdown.SEND
        gone = select.poll()
        gone.register(self.link, 0)
        if any(event & select.POLLHUP for _, event in gone.poll(0)):
            self._host_shut |= Shutdown.RECEIVE
            self._outgoing.clear()

    def untold_shutdown(self) -> Shutdown:
        """The directions that the host has closed, if the guest does not know all of them."""
        untold = self._host_shut & ~self._told
        self._told = self._host_shut
        return self._host_shut if untold else Shutdown.NONE

    def _send(self, data: Sequence[memoryview | bytearray]) -> int:
        try:
            return self.link.sendmsg(data, (), socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            # The program reads no more. Its own data may still be read.
            self._host_shut |= Shutdown.RECEIVE
            return 0

    def _shut_link(self, how: int) -> None:
        # The other end may be gone.
        with contextlib.suppress(OSError):
            self.link.shutdown(how)
