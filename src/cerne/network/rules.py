"""The rules of a network, as JSON for nft (libnftables-json(5)), in its namespace.

`bridge_rules`: a card sends only frames of its own MAC and addresses, and no other machine can say
that it is a router, a DHCP server or another machine. `routing_rules`: what comes in from outside
is dropped unless a machine asked for it, and what goes out is what the card may reach.

Chains are flushed and filled again in one transaction. Sets stay, since dnsmasq adds the addresses
of names to them.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import NamedTuple

from cerne.network.clouds import FORMS4, SERVICES4, SERVICES6, TRANSLATION
from cerne.network.mac import interface_identifier
from cerne.network.plan import CardPlan, NetworkPlan
from cerne.spec.egress import Allowed
from cerne.spec.network import Uplink
from cerne.spec.ports import Protocols

TABLE = "cerne"
BRIDGE = "net0"
OUTSIDE = "out0"
"""The interface of the namespace that leads outside."""
CLOSED_PORT = 5399
"""Where the name server answers that asks outside only for names that machines may reach."""
ROUTER = "fe80::1"
"""The network's own link-local address, which router advertisements come from."""

CLIENT_MARK = 1
"""The mark of connections from clients of published ports, and of the answers to them."""
_ANSWERS, _ASKED = "answers", "asked"
"""The chains that set it."""

Json = dict[str, object]
HostAddress = IPv4Address | IPv6Address
_BURST_TIME = 10
_LEAST_BURST = 1 << 18
"""More than the largest packet that a card hands over at once (GSO, 64 KiB)."""
_ROUTER_SOLICITATION, _NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 133, 135, 136
_ROUTER_ADVERTISEMENT, _REDIRECT = 134, 137
_TARGET, _AFTER_TARGET = 64, 192
"""The bits at which a message about a neighbour has its target, and its first option after it."""
_OWN_MAC, _TARGETS_MAC = 0x0101, 0x0201
"""The beginnings of options with the MAC of the sender, and of the target (RFC 4861, 4.6.1)."""
_DHCP_SERVER, _DHCP6_SERVER = 67, 547
_DHCP_MAC = 8 * (8 + 28)
"""The bit after a UDP header at which DHCP has the MAC of the client (RFC 2131, section 2)."""
_RELAYED = 12
"""The type of DHCPv6's messages in the name of others (RFC 8415, section 7.3)."""
_LINK_LOCAL = 0xFE80
_NEIGHBOURS = "neighbours"
"""The chain with the link-local addresses that the cards' kernels make of their MACs."""
# A system without netbase has no /etc/protocols, from which nft knows their names.
_ICMP6 = 58
_NUMBERS = {Protocols.TCP: 6, Protocols.UDP: 17}
_IN_FRAGMENTS = [6, 17, 50, 132]
"""The protocols whose packets may be sent in fragments: TCP, UDP, ESP, SCTP."""
_RESERVED = 255
"""A number that no protocol has: a packet whose protocol is not found is not unlike it."""
_SOLICITATIONS = [130, 131, 132, 133, 135, 143]
"""ICMPv6 types that a machine without an address sends: multicast listeners, solicitations."""
_CLOSED4 = ("169.254.0.0/16", "127.0.0.0/8", *SERVICES4)
"""The metadata addresses and host services of clouds, and loopback."""
_CLOSED6 = (
    *SERVICES6,
    FORMS4,
    "fe80::/10",
    *(
        f"{TRANSLATION}{subnet.network_address}/{96 + subnet.prefixlen}"
        for subnet in map(IPv4Network, _CLOSED4)
    ),
)


class Card(NamedTuple):
    """A card, and the number that its tap and its chains have."""

    number: int
    plan: CardPlan

    @property
    def tap(self) -> str:
        """The name of its tap, and of its chains."""
        return f"card{self.number}"

    def named_set(self, name: str, version: int) -> str:
        """The set of the addresses of a DNS name that it may reach: no other name ever has it."""
        return f"{self.tap}-{hashlib.sha256(name.encode()).hexdigest()[:12]}-{version}"

    @property
    def names(self) -> list[str]:
        """The DNS names that it may reach."""
        return sorted({each.target for each in self.plan.egress or () if each.is_name})


def bridge_rules(plan: NetworkPlan, cards: Sequence[Card], stale: Iterable[str] = ()) -> Json:
    """The rules of the bridge; `stale` are the chains of cards that are gone."""
    family = "bridge"
    commands = [
        _add("table", family=family, name=TABLE),
        _base_chain(family, "prerouting", "filter", -200, "accept"),
        _chain(family, _NEIGHBOURS),
        *(_chain(family, card.tap) for card in cards),
        *(_flush(family, name) for name in ("prerouting", _NEIGHBOURS)),
        *(_flush(family, name) for name in (*(card.tap for card in cards), *stale)),
        *(_delete("chain", family, name) for name in stale),
    ]
    for card in cards:
        commands += [
            _rule(
                family,
                "prerouting",
                _is(_meta("iifname"), card.tap),
                {"jump": {"target": card.tap}},
            )
        ]
        commands += [_rule(family, card.tap, *rule) for rule in _card_rules(plan, card.plan)]
        commands += [_rule(family, _NEIGHBOURS, *rule) for rule in _neighbour_rules(card)]
    unknown = _is(_meta("iifname"), "card*")
    commands.append(_rule(family, "prerouting", unknown, _DROP))
    return {"nftables": commands}


def routing_rules(
    plan: NetworkPlan,
    cards: Sequence[Card],
    stale: Iterable[str] = (),
    stale_sets: Iterable[str] = (),
    host: Iterable[HostAddress] = (),
) -> Json:
    """The rules of the namespace's routing; `host` are the addresses of the host itself."""
    family = "inet"
    own = ("input", "forward", "prerouting", "postrouting", _ANSWERS, _ASKED)
    commands = [
        _add("table", family=family, name=TABLE),
        _base_chain(family, "input", "filter", 0, "drop"),
        _base_chain(family, "forward", "filter", 0, "drop"),
        _base_chain(family, "prerouting", "nat", -100, "accept"),
        _base_chain(family, "postrouting", "nat", 100, "accept"),
        _base_chain(family, _ANSWERS, "filter", -150, "accept", hook="prerouting"),
        _base_chain(family, _ASKED, "filter", -150, "accept", hook="output"),
        *(_chain(family, card.tap) for card in cards),
        *(_flush(family, name) for name in (*own, *(card.tap for card in cards), *stale)),
        *(_delete("chain", family, name) for name in stale),
        *(_delete("set", family, name) for name in stale_sets),
    ]
    for card in cards:
        for name in card.names:
            commands += [_address_set(card.named_set(name, each), each) for each in (4, 6)]
    commands += [_rule(family, "input", *rule) for rule in _input_rules(plan, cards)]
    commands += [_rule(family, "forward", *rule) for rule in _forward_rules(cards, host)]
    for chain, rule in _client_rules(plan):
        commands.append(_rule(family, chain, *rule))
    commands += [_rule(family, "prerouting", *rule) for rule in _question_rules(cards)]
    for card in cards:
        commands += [_rule(family, card.tap, *rule) for rule in _egress_rules(card)]
    if plan.uplink in (Uplink.USER, Uplink.NAT):
        outside = _is(_meta("oifname"), OUTSIDE)
        commands.append(_rule(family, "postrouting", outside, {"masquerade": None}))
    return {"nftables": commands}


def _card_rules(plan: NetworkPlan, card: CardPlan) -> Iterable[list[Json]]:
    """What one card may send."""
    if card.rate.send is not None:
        yield [_over(card.rate.send), _DROP]
    yield [_isnt(_payload("ether", "saddr"), card.mac), _DROP]
    addressed = plan.uplink is not Uplink.BRIDGE
    if not addressed and card.ipv4 is None and card.ipv6 is None:
        yield from _foreign_rules(card)
        return
    yield from _crowding_rules(plan)
    yield from _arp_rules(card)
    yield from _ipv4_rules(card)
    yield from _ipv6_rules(card)
    yield [_DROP]


def _crowding_rules(plan: NetworkPlan) -> Iterable[list[Json]]:
    """A card asks the name server only so often that others' questions have room there."""
    ports = _is(_payload("udp", "dport"), {"set": [53, CLOSED_PORT]})
    for protocol, addresses in (("ip", (plan.gateway4,)), ("ip6", (plan.gateway6, ROUTER))):
        known = [str(address) for address in addresses if address is not None]
        if known:
            yield [_is(_payload(protocol, "daddr"), {"set": known}), ports, _OFTEN, _DROP]


def _foreign_rules(card: CardPlan) -> Iterable[list[Json]]:
    """The rules of a card whose addresses are given by a network of others: its MAC is known."""
    arp, ip, six = (_is(_payload("ether", "type"), kind) for kind in ("arp", "ip", "ip6"))
    yield [arp, _is(_payload("arp", "saddr ether"), card.mac), _ACCEPT]
    yield from _dhcp_answers(ip, _DHCP_SERVER, 68)
    yield [ip, *_dhcp_question(card), _ACCEPT]
    yield [ip, _is(_payload("udp", "dport"), _DHCP_SERVER), _DROP]
    yield [ip, _ACCEPT]
    yield from _router_rules(six)
    yield from _mac_rules(six, card)
    yield from _whole_rules(six)
    yield [_DROP]


def _arp_rules(card: CardPlan) -> Iterable[list[Json]]:
    arp = _is(_payload("ether", "type"), "arp")
    yield [arp, _isnt(_payload("arp", "saddr ether"), card.mac), _DROP]
    if card.ipv4 is not None:
        senders = {"set": [str(card.ipv4), "0.0.0.0"]}
        yield [arp, _is(_payload("arp", "saddr ip"), senders), _ACCEPT]
    yield [arp, _DROP]


def _ipv4_rules(card: CardPlan) -> Iterable[list[Json]]:
    ip = _is(_payload("ether", "type"), "ip")
    yield from _dhcp_answers(ip, _DHCP_SERVER, 68)
    if card.ipv4 is not None:
        asking = [_is(_payload("udp", "sport"), 68), *_dhcp_question(card)]
        yield [ip, _is(_payload("ip", "saddr"), "0.0.0.0"), *asking, _ACCEPT]
        own = _is(_payload("ip", "saddr"), str(card.ipv4))
        yield [ip, own, *_dhcp_question(card), _ACCEPT]
        yield [ip, _is(_payload("udp", "dport"), _DHCP_SERVER), _DROP]
        yield [ip, own, _ACCEPT]
    yield [ip, _DROP]


def _ipv6_rules(card: CardPlan) -> Iterable[list[Json]]:
    if card.ipv6 is None:
        return
    six = _is(_payload("ether", "type"), "ip6")
    kind = _payload("icmpv6", "type")
    yield from _router_rules(six)
    yield from _mac_rules(six, card)
    sources = {"set": [str(card.ipv6), "::", _prefix("fe80::/64")]}
    source = _payload("ip6", "saddr")
    yield [six, _is(source, ROUTER), _DROP]
    yield [six, _isnt(source, sources), _DROP]
    solicits = {"set": list(_SOLICITATIONS)}
    yield [six, _is(source, "::"), _isnt(_meta("l4proto"), _ICMP6), _DROP]
    yield [six, _is(source, "::"), _isnt(kind, solicits), _DROP]
    yield [six, _is(source, _prefix("fe80::/64")), {"jump": {"target": _NEIGHBOURS}}]
    # Who asks for its own address looks for another that has it (RFC 4862, section 5.4).
    asking = [_is(kind, _NEIGHBOUR_SOLICITATION), _is(source, "::")]
    yield [six, *asking, {"jump": {"target": _NEIGHBOURS}}]
    yield [six, *asking, *_target(card.ipv6), _ACCEPT]
    yield [six, *asking, _isnt(_word(_TARGET, 16), _LINK_LOCAL), _DROP]
    # A neighbour advertisement's target follows 8 bytes of its header (RFC 4861, section 4.4).
    advertisement = _is(kind, _NEIGHBOUR_ADVERTISEMENT)
    yield [six, advertisement, *_target(IPv6Address(ROUTER)), _DROP]
    yield [six, advertisement, {"jump": {"target": _NEIGHBOURS}}]
    yield [six, advertisement, *_target(card.ipv6), _ACCEPT]
    yield [six, advertisement, _isnt(_word(_TARGET, 16), _LINK_LOCAL), _DROP]
    yield from _whole_rules(six)


def _neighbour_rules(card: Card) -> Iterable[list[Json]]:
    """No other card says that it has the link-local address that is made of this card's MAC.

    Guests may choose others (RFC 7217), which no rule knows.
    """
    address = _link_local(card.plan)
    other = _isnt(_meta("iifname"), card.tap)
    yield [other, _is(_payload("ip6", "saddr"), str(address)), _DROP]
    kind = _payload("icmpv6", "type")
    yield [other, _is(kind, _NEIGHBOUR_ADVERTISEMENT), *_target(address), _DROP]
    asking = [_is(kind, _NEIGHBOUR_SOLICITATION), _is(_payload("ip6", "saddr"), "::")]
    yield [other, *asking, *_target(address), _DROP]


def _link_local(card: CardPlan) -> IPv6Address:
    """The link-local address that a card's kernel makes of its MAC."""
    return IPv6Network("fe80::/64")[interface_identifier(card.mac)]


def _dhcp_question(card: CardPlan) -> list[Json]:
    """Matches a message to a DHCP server in the name of the card's own MAC.

    With another's, a machine could decline the address of that one (RFC 2131, section 3.1).
    """
    return [
        _is(_payload("udp", "dport"), _DHCP_SERVER),
        _is(_word(_DHCP_MAC, 48), _number(card.mac)),
    ]


def _number(mac: str) -> int:
    """A MAC as nft compares it with bits of a packet."""
    return int(mac.replace(":", ""), 16)


def _dhcp_answers(protocol: Json, server: int, client: int) -> Iterable[list[Json]]:
    """No card answers DHCP: some clients take an answer by its destination alone."""
    yield [protocol, _is(_payload("udp", "sport"), server), _DROP]
    yield [protocol, _is(_payload("udp", "dport"), client), _DROP]


def _router_rules(six: Json) -> Iterable[list[Json]]:
    """No card is a router, or answers DHCPv6."""
    kinds = {"set": [_ROUTER_ADVERTISEMENT, _REDIRECT]}
    yield [six, _is(_payload("icmpv6", "type"), kinds), _DROP]
    yield from _dhcp_answers(six, _DHCP6_SERVER, 546)


def _mac_rules(six: Json, card: CardPlan) -> Iterable[list[Json]]:
    """Each message about a neighbour names the MAC of its sender, and names it first."""
    for kind, at, option in (
        (_ROUTER_SOLICITATION, _TARGET, _OWN_MAC),
        (_NEIGHBOUR_SOLICITATION, _AFTER_TARGET, _OWN_MAC),
        (_NEIGHBOUR_ADVERTISEMENT, _AFTER_TARGET, _TARGETS_MAC),
    ):
        message = _is(_payload("icmpv6", "type"), kind)
        yield [
            six,
            message,
            _is(_word(at, 16), option),
            _isnt(_word(at + 16, 48), _number(card.mac)),
            _DROP,
        ]
        # One without an option is too short for this rule.
        if kind == _NEIGHBOUR_ADVERTISEMENT:
            yield [six, message, _isnt(_word(at, 16), option), _DROP]


def _whole_rules(six: Json) -> Iterable[list[Json]]:
    """Accept packets that show what they are; a fragment of another protocol hides it."""
    inside: Json = {"exthdr": {"name": "frag", "field": "nexthdr"}}
    yield [six, _isnt(inside, {"set": _IN_FRAGMENTS}), _DROP]
    yield [six, _isnt(_meta("l4proto"), _RESERVED), _ACCEPT]
    yield [six, _DROP]


def _target(address: IPv6Address) -> list[Json]:
    """Matches an advertisement's target: the JSON of nft has numbers of 64 bits at most."""
    words = struct.unpack("!4I", address.packed)
    return [_is(_word(_TARGET + 32 * index, 32), word) for index, word in enumerate(words)]


def _word(offset: int, size: int) -> Json:
    return {"payload": {"base": "th", "offset": offset, "len": size}}


def _input_rules(plan: NetworkPlan, cards: Sequence[Card]) -> Iterable[list[Json]]:
    yield [_is(_meta("iifname"), "lo"), _ACCEPT]
    inside = _is(_meta("iifname"), BRIDGE)
    yield from _closed_questions(inside, cards, _DROP)
    relayed = [_is(_payload("udp", "dport"), _DHCP6_SERVER), _is(_word(64, 8), _RELAYED)]
    yield [inside, *relayed, _DROP]
    yield [_ct_state("established", "related"), _ACCEPT]
    # Neighbours are found on each interface.
    kind = _payload("icmpv6", "type")
    yield [_is(kind, {"set": [*_SOLICITATIONS, _NEIGHBOUR_ADVERTISEMENT]}), _ACCEPT]
    yield [_isnt(_meta("iifname"), BRIDGE), _DROP]
    if plan.uplink is Uplink.BRIDGE:
        return
    yield [inside, _is(_payload("icmp", "type"), "echo-request"), _ACCEPT]
    yield [inside, _is(kind, 128), _ACCEPT]
    yield [
        inside,
        _is(_payload("udp", "dport"), {"set": [53, _DHCP_SERVER, _DHCP6_SERVER, CLOSED_PORT]}),
        _ACCEPT,
    ]
    yield [inside, _is(_payload("tcp", "dport"), {"set": [53, CLOSED_PORT]}), _ACCEPT]
    for card in cards:
        if card.plan.host_ports:
            ports = _is(_payload("tcp", "dport"), {"set": sorted(card.plan.host_ports)})
            for source in _sources(card.plan):
                yield [inside, source, ports, _ACCEPT]
    yield [inside, {"reject": {"type": "icmpx", "expr": "port-unreachable"}}]


def _client_rules(plan: NetworkPlan) -> Iterable[tuple[str, list[Json]]]:
    """A machine's answers to clients of its ports go to the holder, which has their addresses."""
    for protocol, gateway in (("ip", plan.gateway4), ("ip6", plan.gateway6)):
        if gateway is not None:
            out = _is(_meta("oifname"), BRIDGE)
            client = _isnt(_payload(protocol, "saddr"), str(gateway))
            asked = [out, client, _ct_state("new"), _set_mark({"ct": {"key": "mark"}})]
            yield _ASKED, asked
    back: Json = {"match": {"op": "==", "left": {"ct": {"key": "direction"}}, "right": "reply"}}
    marked = _is({"ct": {"key": "mark"}}, CLIENT_MARK)
    yield _ANSWERS, [_is(_meta("iifname"), BRIDGE), back, marked, _set_mark(_meta("mark"))]


def _set_mark(of: Json) -> Json:
    return {"mangle": {"key": of, "value": CLIENT_MARK}}


def _forward_rules(cards: Sequence[Card], host: Iterable[HostAddress]) -> Iterable[list[Json]]:
    inside, out = _is(_meta("iifname"), BRIDGE), _is(_meta("oifname"), OUTSIDE)
    # Where bridged packets pass here too (br_netfilter), machines still reach each other.
    yield [inside, _is(_meta("oifname"), BRIDGE), _ACCEPT]
    yield [_is(_payload("ip", "daddr"), _prefixes(_CLOSED4)), _REJECT]
    yield [_is(_payload("ip6", "daddr"), _prefixes(_CLOSED6)), _REJECT]
    for protocol, version in (("ip", 4), ("ip6", 6)):
        addresses = sorted(str(each) for each in host if each.version == version)
        if addresses:
            yield [inside, _is(_payload(protocol, "daddr"), {"set": addresses}), _REJECT]
    back = [_is(_meta("iifname"), OUTSIDE), _is(_meta("oifname"), BRIDGE)]
    yield [*back, _ct_state("established", "related"), _ACCEPT]
    # Of connections that exist each packet outward is judged again, so that a change acts on them.
    for card in cards:
        for source in _sources(card.plan):
            yield [inside, out, source, {"goto": {"target": card.tap}}]
    yield [inside, _REJECT]


def _question_rules(cards: Sequence[Card]) -> Iterable[list[Json]]:
    """Questions of machines that may not reach everything go to the name server for them."""
    inside = _is(_meta("iifname"), BRIDGE)
    to_gateway = _is({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
    yield from _closed_questions(inside, cards, to_gateway, {"redirect": {"port": CLOSED_PORT}})


def _closed_questions(inside: Json, cards: Sequence[Card], *then: Json) -> Iterable[list[Json]]:
    """What becomes of questions to the name server that no machine asks that reaches everything.

    A machine may ask from any link-local address, so that those that may ask are named.
    """
    if all(card.plan.egress is None for card in cards):
        return
    free = [card for card in cards if card.plan.egress is None]
    four = [str(card.plan.ipv4) for card in free if card.plan.ipv4 is not None]
    six = [str(card.plan.ipv6) for card in free if card.plan.ipv6 is not None]
    six += [str(_link_local(card.plan)) for card in free]
    for kind, protocol, sources in (("ipv4", "ip", four), ("ipv6", "ip6", six)):
        strange = _isnt(_payload(protocol, "saddr"), {"set": sources}) if sources else None
        for transport in ("udp", "tcp"):
            dns = _is(_payload(transport, "dport"), 53)
            version = _is(_meta("nfproto"), kind)
            yield [inside, version, *([strange] if strange else []), dns, *then]


def _egress_rules(card: Card) -> Iterable[list[Json]]:
    """What a card may reach outside."""
    if card.plan.egress is None:
        yield [_ACCEPT]
        return
    for allowed in card.plan.egress:
        for target in _targets(card, allowed):
            for ports in _ports(allowed):
                yield [target, *ports, _ACCEPT]
    yield [_REJECT]


def _targets(card: Card, allowed: Allowed) -> Iterable[Json]:
    if allowed.is_name:
        yield _is(_payload("ip", "daddr"), f"@{card.named_set(allowed.target, 4)}")
        yield _is(_payload("ip6", "daddr"), f"@{card.named_set(allowed.target, 6)}")
        return
    subnet = ip_network(allowed.target)
    protocol = "ip" if isinstance(subnet, IPv4Network) else "ip6"
    yield _is(_payload(protocol, "daddr"), _prefix(allowed.target))


def _ports(allowed: Allowed) -> Iterable[list[Json]]:
    if not allowed.first_port:
        yield [_is(_meta("l4proto"), _NUMBERS[allowed.protocol])] if allowed.protocol else []
        return
    first, last = allowed.first_port, allowed.last_port
    wanted: object = first if first == last else {"range": [first, last]}
    for protocol in ("tcp", "udp") if allowed.protocol is None else (allowed.protocol.value,):
        yield [_is(_payload(protocol, "dport"), wanted)]


def _sources(card: CardPlan) -> Iterable[Json]:
    if card.ipv4 is not None:
        yield _is(_payload("ip", "saddr"), str(card.ipv4))
    if card.ipv6 is not None:
        yield _is(_payload("ip6", "saddr"), str(card.ipv6))


_OFTEN: Json = {"limit": {"rate": 100, "per": "second", "burst": 200, "inv": True}}
_DROP: Json = {"drop": None}
_ACCEPT: Json = {"accept": None}
_REJECT: Json = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}


def _add(what: str, **fields: object) -> Json:
    return {"add": {what: fields}}


def _delete(what: str, family: str, name: str) -> Json:
    return {"delete": {what: {"family": family, "table": TABLE, "name": name}}}


def _chain(family: str, name: str) -> Json:
    return _add("chain", family=family, table=TABLE, name=name)


def _base_chain(
    family: str, name: str, kind: str, priority: int, policy: str, hook: str = ""
) -> Json:
    return _add(
        "chain",
        family=family,
        table=TABLE,
        name=name,
        type=kind,
        hook=hook or name,
        prio=priority,
        policy=policy,
    )


def _flush(family: str, chain: str) -> Json:
    return {"flush": {"chain": {"family": family, "table": TABLE, "name": chain}}}


def _rule(family: str, chain: str, *expressions: Json) -> Json:
    return _add("rule", family=family, table=TABLE, chain=chain, expr=list(expressions))


def _address_set(name: str, version: int) -> Json:
    kind = f"ipv{version}_addr"
    return _add("set", family="inet", table=TABLE, name=name, type=kind, size=65535)


def _is(left: Json, right: object) -> Json:
    return {"match": {"op": "==", "left": left, "right": right}}


def _isnt(left: Json, right: object) -> Json:
    return {"match": {"op": "!=", "left": left, "right": right}}


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _ct_state(*states: str) -> Json:
    return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": list(states)}}


def _prefix(subnet: str) -> Json:
    network = ip_network(subnet)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


def _prefixes(subnets: Iterable[str]) -> Json:
    return {"set": [_prefix(subnet) for subnet in subnets]}


def _over(rate: int) -> Json:
    burst = max(rate // _BURST_TIME, _LEAST_BURST)
    return {
        "limit": {
            "rate": rate,
            "rate_unit": "bytes",
            "per": "second",
            "burst": burst,
            "burst_unit": "bytes",
            "inv": True,
        }
    }
