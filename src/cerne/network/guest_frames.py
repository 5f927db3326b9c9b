"""What a guest's card on user-mode networking may send: the wall between a guest and its host.

passt connects as a process of this host, so that without this wall a guest reaches the services
that listen only on the host's loopback, the host's other addresses, and the metadata services of
clouds. All of these are closed, except ports that were opened by name at the gateway's address.
Frames are Ethernet II with ARP (RFC 826), IPv4 (RFC 791) or IPv6 (RFC 8200); no others pass.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto

from cerne.network.clouds import FORMS4, SERVICES4, SERVICES6, TRANSLATION
from cerne.network.user import GATEWAY, GATEWAY6, NAME_SERVER

LARGEST_FRAME = 16384
"""Bytes of a longest frame that passes; larger ones are not for a network of this kind."""
IPV4, IPV6, ARP = b"\x08\x00", b"\x86\xdd", b"\x08\x06"
_LEAST_IPV4 = 34
"""Bytes of the headers of Ethernet and IPv4."""

_CLOSED_NETWORKS = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    FORMS4,
    "fe80::/10",
    "ff00::/8",
    *SERVICES4,
    *SERVICES6,
)
_TRANSLATED = socket.inet_pton(socket.AF_INET6, TRANSLATION)[:12]

_ARP_START = bytes.fromhex("000108000604")
_GATEWAY, _NAME_SERVER = socket.inet_aton(GATEWAY), socket.inet_aton(NAME_SERVER)
_GATEWAY6 = socket.inet_pton(socket.AF_INET6, GATEWAY6)
_EVERYONE = b"\xff" * 4
_MULTICAST6 = b"\xff\x02"
_ICMP, _TCP, _UDP, _ICMP6 = 1, 6, 17, 58
_PORT = struct.Struct("!H")
_LENGTH = struct.Struct("!I")
_ECHO_REQUEST = 8
_DHCP, _DNS, _DHCP6 = 67, 53, 547
_SYN, _RST, _ACK, _SYN_ACK = 0x02, 0x04, 0x10, 0x12
_PLAIN = 0x45
"""The first byte of an IPv4 packet without options."""
_FRAGMENT = 0x3F
_REPEATS = 10
_MOST_KNOWN = _MOST_ANSWERABLE = 4096


class Verdict(Enum):
    """What becomes of a frame."""

    PASS = auto()
    DROP = auto()
    NAME = auto()
    """A question to the name server."""
    ECHO = auto()
    """An echo request to the gateway or the name server."""
    REFUSE = auto()
    """The beginning of a TCP connection to a closed address."""


class GuestFrames:
    """Judges the frames of one card."""

    def __init__(
        self, is_own: Callable[[bytes], bool], host_access: Collection[int] = frozenset()
    ) -> None:
        """`is_own` says whether an address is one of this host's; `host_access` are open ports."""
        self._is_own = is_own
        self._ports = frozenset(host_access)
        self._known: dict[bytes, bool] = {}
        self._answerable: dict[tuple[int, bytes, bytes], bool] = {}
        self._unanswered: dict[tuple[int, bytes, bytes], tuple[bytes, int]] = {}

    def forget(self) -> None:
        """Ask again for each address, because the host's addresses change."""
        self._known.clear()

    def note(self, frame: bytes) -> None:
        """Note a frame to the guest: what it answers may pass, even to an address that is closed.

        A client of a published port on this host has the gateway's address, or one of the host's.
        """
        kind = frame[12:14]
        if kind == IPV4 and len(frame) >= 42:
            protocol, source, at = frame[23], frame[26:30], 34
        elif kind == IPV6 and len(frame) >= 62:
            protocol, source, at = frame[20], frame[22:38], 54
        else:
            return
        if protocol == _TCP:
            noted = len(frame) > at + 13 and frame[at + 13] & _SYN_ACK == _SYN
        else:
            noted = protocol == _UDP and not self._is_open(source)
        if noted:
            key = (protocol, source, frame[at + 2 : at + 4] + frame[at : at + 2])
            self._answerable.pop(key, None)
            self._answerable[key] = True
            if protocol == _TCP and not self._is_open(source):
                self._unanswered[key] = (frame, 0)
            for noted_ones in (self._answerable, self._unanswered):
                if len(noted_ones) > _MOST_ANSWERABLE:
                    del noted_ones[next(iter(noted_ones))]

    @property
    def waits(self) -> bool:
        """Whether `repeated` has something to do, each second."""
        return bool(self._unanswered)

    def repeated(self) -> list[bytes]:
        """The first segments of connections from this host that the guest has not answered.

        A guest drops them while its server has many others to accept, and passt (2023-03) sends
        each only once, and resets the connection after ten seconds.
        """
        waiting = self._unanswered
        self._unanswered = {
            key: (frame, count + 1) for key, (frame, count) in waiting.items() if count < _REPEATS
        }
        # The first time, one may have come just now.
        return [frame for frame, count in self._unanswered.values() if count > 1]

    def goes_out(self, buffer: bytes, start: int, end: int) -> bool:
        """Whether a frame in a buffer passes, as `judge` would say of most, without a copy of it.

        These are IPv4 to an address that was found to be open.
        """
        if not _LEAST_IPV4 <= end - start <= LARGEST_FRAME:
            return False
        if buffer[start + 12] != 0x08 or buffer[start + 13] != 0x00:
            return False
        return self._known.get(buffer[start + 30 : start + 34], False)

    def judge(self, frame: bytes) -> Verdict:
        """What becomes of a frame of the guest, which may be anything."""
        kind = frame[12:14]
        if len(frame) > LARGEST_FRAME:
            return Verdict.DROP
        if kind == IPV4 and len(frame) >= _LEAST_IPV4:
            destination = frame[30:34]
            if self._is_open(destination):
                return Verdict.PASS
            return self._special(frame, destination)
        if kind == IPV6 and len(frame) >= 54:
            destination = frame[38:54]
            if self._is_open(destination):
                return Verdict.PASS
            return self._special6(frame, destination)
        # passt reads what only claims to be ARP as IPv4.
        return _passes(kind == ARP and frame[14:20] == _ARP_START)

    def _is_open(self, address: bytes) -> bool:
        known = self._known.get(address)
        if known is None:
            known = not (_is_closed(address) or self._is_own(address))
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[address] = known
        return known

    def _special(self, frame: bytes, destination: bytes) -> Verdict:
        """IPv4 to an address that is closed but for some packets; they are whole and plain."""
        if frame[14] != _PLAIN or frame[20] & _FRAGMENT or frame[21] or len(frame) < 42:
            return Verdict.DROP
        protocol = frame[23]
        port = _PORT.unpack_from(frame, 36)[0] if protocol in (_TCP, _UDP) else None
        at_gateway = destination == _GATEWAY
        if protocol == _ICMP and frame[34] == _ECHO_REQUEST:
            echoes = at_gateway or destination == _NAME_SERVER
            return Verdict.ECHO if echoes else Verdict.DROP
        if protocol == _UDP and destination == _NAME_SERVER:
            return Verdict.NAME if port == _DNS else Verdict.DROP
        if protocol == _UDP and port == _DHCP and (at_gateway or destination == _EVERYONE):
            return Verdict.PASS
        return self._to_port(frame, protocol, destination, 34, port if at_gateway else None)

    def _special6(self, frame: bytes, destination: bytes) -> Verdict:
        """IPv6 to such an address, without extension headers."""
        if len(frame) < 62:
            return Verdict.DROP
        protocol = frame[20]
        port = _PORT.unpack_from(frame, 56)[0] if protocol in (_TCP, _UDP) else None
        at_gateway = destination == _GATEWAY6
        if at_gateway or destination.startswith(_MULTICAST6):
            if protocol == _ICMP6:
                # Neighbours and routers (RFC 4861), and nothing that passt would send itself.
                return _passes(133 <= frame[54] <= 136)
            if protocol == _UDP and port == _DHCP6:
                return Verdict.PASS
        return self._to_port(frame, protocol, destination, 54, port if at_gateway else None)

    def _to_port(
        self, frame: bytes, protocol: int, destination: bytes, at: int, port: int | None
    ) -> Verdict:
        """A packet with its ports at `at`, to a `port` of the gateway, or to another address."""
        if port in self._ports or self._answers(frame, protocol, destination, at):
            return Verdict.PASS
        begins = protocol == _TCP and len(frame) >= at + 20
        return Verdict.REFUSE if begins and not frame[at + 13] & _ACK else Verdict.DROP

    def _answers(self, frame: bytes, protocol: int, destination: bytes, at: int) -> bool:
        """Whether a packet with its ports at `at` belongs to what a client of the host began."""
        key = (protocol, destination, frame[at : at + 4])
        if protocol == _UDP:
            return key in self._answerable
        if protocol != _TCP or len(frame) <= at + 13:
            return False
        self._unanswered.pop(key, None)
        if not frame[at + 13] & _SYN:
            # passt takes it for a part of a connection that exists, or drops it.
            return True
        # Each SYN has one answer: without its connection, passt might take it for a SYN.
        return bool(frame[at + 13] & _ACK) and self._answerable.pop(key, False)


def _passes(passes: bool) -> Verdict:
    return Verdict.PASS if passes else Verdict.DROP


def _is_closed(address: bytes) -> bool:
    if address in (_GATEWAY, _NAME_SERVER, _GATEWAY6):
        return True
    if any(_is_in(address, *network) for network in _CLOSED):
        return True
    return address.startswith(_TRANSLATED) and _is_closed(address[len(_TRANSLATED) :])


def _is_in(address: bytes, network: bytes, bits: int) -> bool:
    others = 8 * len(network) - bits
    same = int.from_bytes(address) >> others == int.from_bytes(network) >> others
    return len(address) == len(network) and same


def _network(text: str) -> tuple[bytes, int]:
    address, _, bits = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address), int(bits)


_CLOSED = tuple(map(_network, _CLOSED_NETWORKS))


def goes_on(buffer: bytes, start: int, end: int) -> bool:
    """Whether a frame to the guest in a buffer begins nothing, so that it need not be noted.

    These are most: IPv4 with a TCP segment that is no SYN.
    """
    if end - start < 48 or buffer[start + 23] != _TCP:
        return False
    if buffer[start + 12] != 0x08 or buffer[start + 13] != 0x00:
        return False
    return buffer[start + 47] & _SYN_ACK != _SYN


def frames_in(buffer: bytes, largest: int) -> tuple[list[tuple[int, int]], int]:
    """Where the whole frames of a stream are, and the bytes that they and their lengths take.

    Each frame follows its length of 32 bits in network order, as QEMU's stream netdev has it.

    Raises:
        ValueError: a length is over `largest`.
    """
    found: list[tuple[int, int]] = []
    at, end = 0, len(buffer)
    while at + 4 <= end:
        size: int = _LENGTH.unpack_from(buffer, at)[0]
        if size > largest:
            raise ValueError(f"the size of a frame is {size}")
        if at + 4 + size > end:
            break
        found.append((at + 4, at + 4 + size))
        at += 4 + size
    return found, at


def framed(frame: bytes) -> bytes:
    """A frame with its length before it."""
    return _LENGTH.pack(len(frame)) + frame


def echo_reply(frame: bytes) -> bytes:
    """The reply to an echo request (RFC 792) that was judged `Verdict.ECHO`."""
    size = 14 + min(_PORT.unpack_from(frame, 16)[0], len(frame) - 14)
    message = bytes([0, frame[35], 0, 0]) + frame[38:size]
    checksum = _PORT.pack(internet_checksum(message))
    return _swapped(frame) + frame[30:34] + frame[26:30] + message[:2] + checksum + message[4:]


def refusal(frame: bytes) -> bytes:
    """The segment that refuses a connection (RFC 9293, 3.5.2), to one with a plain SYN."""
    old = frame[12:14] == IPV4
    at = 34 if old else 54
    acknowledged = (int.from_bytes(frame[at + 4 : at + 8]) + 1) % (1 << 32)
    segment = frame[at + 2 : at + 4] + frame[at : at + 2] + bytes(4)
    segment += struct.pack("!IBBHHH", acknowledged, 0x50, _RST | _ACK, 0, 0, 0)
    ends = frame[30:34] + frame[26:30] if old else frame[38:54] + frame[22:38]
    checksum = internet_checksum(ends + struct.pack("!HH", _TCP, len(segment)) + segment)
    segment = segment[:16] + _PORT.pack(checksum) + segment[18:]
    if old:
        return frame[6:12] + frame[:6] + IPV4 + _header(_TCP, len(segment), ends) + segment
    header = struct.pack("!IHBB", 6 << 28, len(segment), _TCP, 64)
    return frame[6:12] + frame[:6] + IPV6 + header + ends + segment


def udp_reply(frame: bytes, payload: bytes) -> bytes:
    """A datagram back to the sender of one in an Ethernet frame with plain IPv4."""
    ports = frame[36:38] + frame[34:36]
    # A UDP checksum of zero is none (RFC 768).
    datagram = ports + _PORT.pack(8 + len(payload)) + b"\0\0" + payload
    header = _header(_UDP, len(datagram), frame[30:34] + frame[26:30])
    return frame[6:12] + frame[:6] + IPV4 + header + datagram


def udp_payload(frame: bytes) -> bytes:
    """The content of a UDP datagram in plain IPv4."""
    return frame[42 : 34 + max(8, _PORT.unpack_from(frame, 38)[0])]


def arp_request(mac: bytes, sender: str, target: str) -> bytes:
    """The request of a card for an address, to everyone on its network."""
    addresses = mac + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return b"\xff" * 6 + mac + ARP + _ARP_START + b"\0\1" + addresses


def internet_checksum(data: bytes) -> int:
    """The checksum of RFC 1071."""
    words: Iterable[tuple[int]] = struct.iter_unpack("!H", data + b"\0" * (len(data) % 2))
    total = sum(word for (word,) in words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _swapped(frame: bytes) -> bytes:
    """The Ethernet and IPv4 headers of a packet back, without the addresses of IPv4.

    Its checksum stays, because the order of words does not change it.
    """
    return frame[6:12] + frame[:6] + frame[12:26]


def _header(protocol: int, size: int, addresses: bytes) -> bytes:
    """The IPv4 header of a packet with so many bytes after it."""
    header = struct.pack("!BBHHHBBH", _PLAIN, 0, 20 + size, 0, 0, 64, protocol, 0)
    return header[:10] + _PORT.pack(internet_checksum(header + addresses)) + addresses
