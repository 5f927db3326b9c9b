"""Frames that a machine may send, and frames that it must not (Ethernet, ARP, IPv4, IPv6, ND)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from tests.network.lab.lab import GATEWAY4

from cerne.network.guest_frames import internet_checksum
from cerne.network.mac import interface_identifier
from cerne.network.plan import CardPlan

_ARP, _IP, _IP6, _VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
_UDP, _FRAGMENT, _ICMP6, _OPTIONS = 17, 44, 58, 60
_ROUTER = IPv6Address("fe80::1")
_ALL_NODES = IPv6Address("ff02::1")


def honest(sender: CardPlan, to: CardPlan) -> bytes:
    """What the sender may send."""
    assert sender.ipv4 is not None
    assert to.ipv4 is not None
    return _ether(to.mac, sender.mac, _IP, _udp4(sender.ipv4, to.ipv4))


def allowed(sender: CardPlan, to: CardPlan) -> dict[str, bytes]:
    """Frames that the sender may send, by name."""
    six, to6 = sender.ipv6, to.ipv6
    assert six
    assert to6
    own, chosen = link_local(sender), IPv6Address("fe80::1234:5678:9abc:def0")
    parts = {
        "fragment-of-udp": _fragment(six, to6, _UDP, struct.pack("!4H", 999, 9, 1480, 1)),
        "later-fragment-of-udp": _fragment(six, to6, _UDP, b"", 1448),
        "advertises-itself": _advertises(six, six, sender.mac),
        "advertises-its-link-local": _advertises(own, own, sender.mac),
        "advertises-a-chosen-link-local": _advertises(chosen, chosen, sender.mac),
        "looks-for-its-address": _asks(IPv6Address(0), six),
        "looks-for-its-link-local": _asks(IPv6Address(0), own),
        "asks-for-another": _asks(six, to6, sender.mac),
        "asks-for-a-link-local": _asks(own, link_local(to), sender.mac),
    }
    return {name: _ether(to.mac, sender.mac, _IP6, part) for name, part in parts.items()}


def unaddressed(sender: CardPlan, to: CardPlan, other: CardPlan) -> set[str]:
    """Those of `spoofed` that are dropped by the MAC of the sender alone."""
    return {
        name
        for name in spoofed(sender, to, other)
        if "mac" in name or name.startswith("dhcp") or "fragment" in name or "router-adv" in name
    } | {"redirect", "vlan", "spanning-tree", "unknown-protocol"}


def begins(sender: CardPlan, router: str, target: IPv6Address, port: int) -> bytes:
    """The first segment of a TCP connection to an address behind the network's router."""
    assert sender.ipv6
    ends = sender.ipv6.packed + target.packed
    segment = struct.pack("!HHIIBBHHH", 999, port, 1, 0, 0x50, 2, 1024, 0, 0)
    total = internet_checksum(ends + struct.pack("!II", len(segment), 6) + segment)
    segment = segment[:16] + struct.pack("!H", total) + segment[18:]
    head = struct.pack("!IHBB", 0x6000_0000, len(segment), 6, 64)
    return _ether(router, sender.mac, _IP6, head + ends + segment)


def link_local(card: CardPlan) -> IPv6Address:
    """The link-local address that a card's kernel makes of its MAC."""
    return IPv6Address((0xFE80 << 112) + interface_identifier(card.mac))


def spoofed(sender: CardPlan, to: CardPlan, other: CardPlan) -> dict[str, bytes]:
    """Frames of the sender that say they are another's, by name."""
    four, six = sender.ipv4, sender.ipv6
    theirs4, theirs6 = other.ipv4, other.ipv6
    to4, to6 = to.ipv4, to.ipv6
    assert four and six and theirs4 and theirs6 and to4 and to6

    def by_ip(content: bytes, kind: int = _IP, source: str = sender.mac) -> bytes:
        return _ether(to.mac, source, kind, content)

    mine, theirs_local = link_local(sender), link_local(other)
    hidden = bytes([_ICMP6, 20]) + bytes(6)
    return {
        "mac-of-another": by_ip(_udp4(four, to4), source=other.mac),
        "ipv4-of-another": by_ip(_udp4(theirs4, to4)),
        "ipv4-of-the-gateway": by_ip(_udp4(GATEWAY4, to4)),
        "ipv4-of-nobody": by_ip(_udp4(IPv4Address("192.0.2.1"), to4)),
        "unspecified-not-dhcp": by_ip(_udp4(IPv4Address(0), to4)),
        "dhcp-server": by_ip(_udp4(four, to4, 67, 68)),
        "dhcp-answer-from-another-port": by_ip(_udp4(four, to4, 1067, 68)),
        "ipv6-of-another": by_ip(_udp6(theirs6, to6), _IP6),
        "ipv6-of-the-router": by_ip(_udp6(_ROUTER, to6), _IP6),
        "ipv6-unspecified": by_ip(_udp6(IPv6Address(0), to6), _IP6),
        "dhcpv6-server": by_ip(_udp6(six, to6, 547, 546), _IP6),
        "dhcpv6-answer-from-another-port": by_ip(_udp6(six, to6, 1547, 546), _IP6),
        "arp-ip-of-another": by_ip(_arp(sender.mac, theirs4, to), _ARP),
        "arp-ip-of-gateway": by_ip(_arp(sender.mac, GATEWAY4, to), _ARP),
        "arp-mac-of-another": by_ip(_arp(other.mac, four, to), _ARP),
        "router-advertisement": by_ip(_icmp6(mine, 134, bytes(12)), _IP6),
        "redirect": by_ip(_icmp6(mine, 137, bytes(36)), _IP6),
        "advertises-another": by_ip(_advertises(six, theirs6, sender.mac), _IP6),
        "advertises-router": by_ip(_advertises(six, _ROUTER, sender.mac), _IP6),
        "advertises-link-local-of-another": by_ip(_advertises(six, theirs_local, sender.mac), _IP6),
        "link-local-of-another": by_ip(_udp6(theirs_local, to6), _IP6),
        "takes-address-of-another": by_ip(_asks(IPv6Address(0), theirs6), _IP6),
        "takes-link-local-of-another": by_ip(_asks(IPv6Address(0), theirs_local), _IP6),
        "advertises-mac-of-another": by_ip(_advertises(six, six, other.mac), _IP6),
        "asks-with-mac-of-another": by_ip(_asks(six, to6, other.mac), _IP6),
        "solicits-with-mac-of-another": by_ip(
            _icmp6(mine, 133, bytes(4) + _option(1, other.mac)), _IP6
        ),
        "fragment-of-advertisement": by_ip(
            _fragment(six, _ALL_NODES, _ICMP6, struct.pack("!BBH", 136, 0, 0) + bytes(20)), _IP6
        ),
        "later-fragment-of-icmpv6": by_ip(_fragment(six, _ALL_NODES, _ICMP6, b"", 8), _IP6),
        "fragment-that-hides-its-type": by_ip(_fragment(six, _ALL_NODES, _OPTIONS, hidden), _IP6),
        "options-with-router-advertisement-as-fragment": by_ip(
            _ip6(mine, _ALL_NODES, _OPTIONS, bytes([_FRAGMENT, 0, 1, 4, 0, 0, 0, 0]) + hidden),
            _IP6,
        ),
        "vlan": by_ip(struct.pack("!HH", 5, _IP) + _udp4(four, to4), _VLAN),
        "spanning-tree": by_ip(bytes(40), 0x0027),
        "unknown-protocol": by_ip(bytes(40), 0x88B5),
    }


def _ether(target: str, source: str, kind: int, content: bytes) -> bytes:
    return _mac(target) + _mac(source) + struct.pack("!H", kind) + content


def datagram(sender: CardPlan, to: str, target: IPv6Address, port: int, content: bytes) -> bytes:
    """A whole UDP datagram of a machine, to a MAC."""
    assert sender.ipv6 is not None
    ends, size = sender.ipv6.packed + target.packed, 8 + len(content)
    udp = struct.pack("!3H", 999, port, size)
    checksum = internet_checksum(ends + struct.pack("!2I", size, _UDP) + udp + b"\0\0" + content)
    head = struct.pack("!IHBB", 0x6000_0000, size, _UDP, 64)
    packet = head + ends + udp + struct.pack("!H", checksum) + content
    return _ether(to, sender.mac, _IP6, packet)


def relayed(sender: CardPlan, to: str, gateway: IPv6Address, other: CardPlan) -> bytes:
    """A question of DHCPv6 in the name of another machine (RFC 8415, RFC 6939)."""
    assert sender.ipv6 is not None
    asked = _dhcp6_option(1, b"\0\3\0\1" + _mac(other.mac)) + _dhcp6_option(3, bytes(12))
    question = b"\1\0\0\7" + asked
    content = b"\x0c\0" + gateway.packed + sender.ipv6.packed
    content += _dhcp6_option(79, b"\0\1" + _mac(other.mac)) + _dhcp6_option(9, question)
    return datagram(sender, to, gateway, 547, content)


def declined(sender: CardPlan, to: str, other: CardPlan) -> bytes:
    """A message that another machine does not take its address (RFC 2131, section 3.1)."""
    assert sender.ipv4 is not None
    assert other.ipv4 is not None
    options = bytes([53, 1, 4, 50, 4]) + other.ipv4.packed + bytes([54, 4]) + GATEWAY4.packed
    content = struct.pack("!BBBBI20x", 1, 1, 6, 0, 7) + _mac(other.mac) + bytes(202)
    content += b"\x63\x82\x53\x63" + options + b"\xff"
    udp = struct.pack("!4H", 68, 67, 8 + len(content), 0) + content
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, _UDP, 0)
    ends = sender.ipv4.packed + GATEWAY4.packed
    head = head[:10] + struct.pack("!H", internet_checksum(head + ends))
    return _ether(to, sender.mac, _IP, head + ends + udp)


def _dhcp6_option(kind: int, content: bytes) -> bytes:
    return struct.pack("!2H", kind, len(content)) + content


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _udp4(source: IPv4Address, target: IPv4Address, sport: int = 999, dport: int = 9) -> bytes:
    # 64 bytes of content are appended: a frame that is shorter than it says is not matched.
    udp = struct.pack("!4H", sport, dport, 72, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 92, 1, 0, 64, _UDP, 0) + source.packed + target.packed
    total = sum(struct.unpack("!10H", head))
    total = (total >> 16) + (total & 0xFFFF)
    total = (total >> 16) + (total & 0xFFFF)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:] + udp


def _ip6(source: IPv6Address, target: IPv6Address, kind: int, content: bytes) -> bytes:
    length = len(content) + 64
    head = struct.pack("!IHBB", 0x6000_0000, length, kind, 255)
    return head + source.packed + target.packed + content


def _udp6(source: IPv6Address, target: IPv6Address, sport: int = 999, dport: int = 9) -> bytes:
    return _ip6(source, target, _UDP, struct.pack("!4H", sport, dport, 72, 1))


def _icmp6(source: IPv6Address, kind: int, content: bytes) -> bytes:
    return _ip6(source, _ALL_NODES, _ICMP6, struct.pack("!BBH", kind, 0, 0) + content)


def _advertises(source: IPv6Address, target: IPv6Address, mac: str) -> bytes:
    return _icmp6(source, 136, bytes(4) + target.packed + _option(2, mac))


def _asks(source: IPv6Address, target: IPv6Address, mac: str = "") -> bytes:
    option = _option(1, mac) if mac else _option(14, "01:02:03:04:05:06")
    return _icmp6(source, 135, bytes(4) + target.packed + option)


def _option(kind: int, mac: str) -> bytes:
    return bytes([kind, 1]) + bytes.fromhex(mac.replace(":", ""))


def _fragment(
    source: IPv6Address, target: IPv6Address, kind: int, content: bytes, offset: int = 0
) -> bytes:
    """A fragment that more fragments follow (RFC 8200, section 4.5)."""
    head = struct.pack("!BBHI", kind, 0, offset | 1, 7)
    return _ip6(source, target, _FRAGMENT, head + content)


def _arp(mac: str, address: IPv4Address, to: CardPlan) -> bytes:
    assert to.ipv4 is not None
    head = struct.pack("!HHBBH", 1, _IP, 6, 4, 2) + bytes.fromhex(mac.replace(":", ""))
    return head + address.packed + bytes.fromhex(to.mac.replace(":", "")) + to.ipv4.packed
