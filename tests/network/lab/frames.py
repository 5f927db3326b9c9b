"""Frames that a machine may send, and frames that it must not (Ethernet, ARP, IPv4, IPv6, ND)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from tests.network.lab.lab import GATEWAY4

from cerne.network.plan import CardPlan

_ARP, _IP, _IP6, _VLAN = 0x0806, 0x0800, 0x86DD, 0x8100
_UDP, _ICMP6 = 17, 58
_ROUTER = IPv6Address("fe80::1")
_ALL_NODES = IPv6Address("ff02::1")


def honest(sender: CardPlan, to: CardPlan) -> bytes:
    """What the sender may send."""
    assert sender.ipv4 is not None
    assert to.ipv4 is not None
    return _ether(to.mac, sender.mac, _IP, _udp4(sender.ipv4, to.ipv4))


def spoofed(sender: CardPlan, to: CardPlan, other: CardPlan) -> dict[str, bytes]:
    """Frames of the sender that say they are another's, by name."""
    four, six = sender.ipv4, sender.ipv6
    theirs4, theirs6 = other.ipv4, other.ipv6
    to4, to6 = to.ipv4, to.ipv6
    assert four and six and theirs4 and theirs6 and to4 and to6

    def by_ip(content: bytes, kind: int = _IP, source: str = sender.mac) -> bytes:
        return _ether(to.mac, source, kind, content)

    link_local = IPv6Address("fe80::ff:fe00:5")
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
        "router-advertisement": by_ip(_icmp6(link_local, 134, bytes(12)), _IP6),
        "redirect": by_ip(_icmp6(link_local, 137, bytes(36)), _IP6),
        "advertises-another": by_ip(_icmp6(six, 136, bytes(4) + theirs6.packed), _IP6),
        "advertises-router": by_ip(_icmp6(six, 136, bytes(4) + _ROUTER.packed), _IP6),
        "vlan": by_ip(struct.pack("!HH", 5, _IP) + _udp4(four, to4), _VLAN),
        "spanning-tree": by_ip(bytes(40), 0x0027),
        "unknown-protocol": by_ip(bytes(40), 0x88B5),
    }


def _ether(target: str, source: str, kind: int, content: bytes) -> bytes:
    def packed(mac: str) -> bytes:
        return bytes.fromhex(mac.replace(":", ""))

    return packed(target) + packed(source) + struct.pack("!H", kind) + content


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


def _arp(mac: str, address: IPv4Address, to: CardPlan) -> bytes:
    assert to.ipv4 is not None
    head = struct.pack("!HHBBH", 1, _IP, 6, 4, 2) + bytes.fromhex(mac.replace(":", ""))
    return head + address.packed + bytes.fromhex(to.mac.replace(":", "")) + to.ipv4.packed
