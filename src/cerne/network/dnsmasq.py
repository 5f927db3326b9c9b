"""The files of dnsmasq(8): machines' addresses (DHCPv4, DHCPv6, router advertisements), and names.

Only machines that are listed get addresses. Their names have an A, an AAAA and a PTR record, with
the network's domain and without; all other names are asked of the servers that the holder relays
to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network

from cerne.network.names import GATEWAY_NAME, HOST_NAME, OWN_NAMES
from cerne.network.plan import NetworkPlan
from cerne.network.rules import BRIDGE, CLOSED_PORT, TABLE, Card

CONFIGURATION, CLOSED, HOSTS = "dnsmasq.conf", "closed.conf", "hosts"
CARDS, LEASES = "cards", "leases"
"""Names of the files. dnsmasq reads `HOSTS` and `CARDS` again when it gets SIGHUP."""
LEASE_TIME = "1h"
_DNS = 53
_MOST_QUESTIONS = 10_000
"""Open questions, each up to ten seconds: what four machines may ask in this time (`rules`)."""
_LOCAL_NAME = re.compile("[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII | re.IGNORECASE)


def configuration(
    plan: NetworkPlan, directory: str, servers: Sequence[int], cards: Iterable[Card]
) -> str:
    """The configuration, with files in this directory.

    `servers` are ports of 127.0.0.1 in the namespace, at which name servers of the host answer.
    """
    lines = [
        *_answering(plan, directory, _DNS),
        "no-ping",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        "dhcp-authoritative",
        "dhcp-ignore=tag:!known",
        # A name that a guest asks for is not its own; its own is in the file of cards.
        "dhcp-ignore-names",
        f"dhcp-hostsfile={directory}/{CARDS}",
        f"dhcp-leasefile={directory}/{LEASES}",
        f"dhcp-option=option:mtu,{plan.mtu}",
    ]
    lines += [f"server=127.0.0.1#{port}" for port in servers]
    if plan.ipv4 is not None:
        lines.append(
            f"dhcp-range={plan.ipv4.network_address},static,{plan.ipv4.netmask},{LEASE_TIME}"
        )
        lines.append(f"dhcp-option=option:dns-server,{plan.gateway4}")
        lines.append(f"dhcp-option=option:router,{plan.gateway4}")
        lines.append(f"dhcp-option=option:domain-search,{plan.domain}")
    if plan.ipv6 is not None:
        prefix = plan.ipv6.prefixlen
        lines.append(f"dhcp-range={plan.ipv6.network_address},static,{prefix},{LEASE_TIME}")
        lines.append(f"dhcp-option=option6:dns-server,[{plan.gateway6}]")
        lines.append(f"dhcp-option=option6:domain-search,{plan.domain}")
        lines.append("enable-ra")
        lines.append(f"ra-param={BRIDGE},mtu:{plan.mtu},60,1800")
    lines += _name_sets(cards)
    return "\n".join(lines) + "\n"


def closed_configuration(
    plan: NetworkPlan, directory: str, servers: Sequence[int], cards: Sequence[Card]
) -> str:
    """The configuration of a second server, for machines that may not reach everything outside.

    It asks only for the names that such machines may reach: a question for any other name would
    carry data out.
    """
    names = {name for card in cards for name in card.names}
    lines = _answering(plan, directory, CLOSED_PORT)
    lines += [f"server=/{name}/127.0.0.1#{port}" for name in sorted(names) for port in servers]
    lines += _name_sets(cards)
    return "\n".join(lines) + "\n"


def _answering(plan: NetworkPlan, directory: str, port: int) -> list[str]:
    """What both servers have: the names of the network, at its gateway."""
    lines = [
        f"port={port}",
        f"interface={BRIDGE}",
        "except-interface=lo",
        "bind-interfaces",
        "no-resolv",
        "no-hosts",
        "no-poll",
        "domain-needed",
        "pid-file",
        "log-facility=-",
        "cache-size=1000",
        f"dns-forward-max={_MOST_QUESTIONS}",
        f"domain={plan.domain}",
        f"local=/{plan.domain}/",
        f"addn-hosts={directory}/{HOSTS}",
        "all-servers",
    ]
    for subnet in (plan.ipv4, plan.ipv6):
        if subnet is not None:
            lines += [f"local=/{zone}/" for zone in reverse_zones(subnet)]
    return lines


def _name_sets(cards: Iterable[Card]) -> Iterable[str]:
    """Have the addresses of names that machines may reach added to their sets.

    An address goes into the sets of one line alone: the one with the longest name at the end of
    the name that was asked for. So a line has the sets of each card that may reach its name, or a
    name above it.
    """
    allowed = [(name, card) for card in cards for name in card.names]
    for name in sorted({name for name, _ in allowed}):
        sets = ",".join(
            f"{version}#inet#{TABLE}#{card.named_set(other, version)}"
            for other, card in allowed
            if name == other or name.endswith(f".{other}")
            for version in (4, 6)
        )
        yield f"nftset=/{name}/{sets}"


def hosts(plan: NetworkPlan, cards: Iterable[Card]) -> str:
    """The names of the machines and of the network itself (hosts(5))."""
    lines = []
    gateways = [address for address in (plan.gateway4, plan.gateway6) if address is not None]
    lines += [
        f"{address} {GATEWAY_NAME}.{plan.domain} {GATEWAY_NAME} {HOST_NAME}" for address in gateways
    ]
    for card in cards:
        if not _has_name(card):
            continue
        for address in (card.plan.ipv4, card.plan.ipv6):
            if address is not None:
                lines.append(f"{address} {card.plan.name}.{plan.domain} {card.plan.name}")
    return "".join(f"{line}\n" for line in lines)


def cards_file(cards: Iterable[Card]) -> str:
    """The address and the name of each MAC, for DHCP."""
    lines = []
    for card in cards:
        fields = [card.plan.mac]
        if card.plan.ipv4 is not None:
            fields.append(str(card.plan.ipv4))
        if card.plan.ipv6 is not None:
            fields.append(f"[{card.plan.ipv6}]")
        if _has_name(card):
            fields.append(card.plan.name)
        lines.append(",".join([*fields, LEASE_TIME]))
    return "".join(f"{line}\n" for line in lines)


def _has_name(card: Card) -> bool:
    """Whether a machine's name is one label, and no name of the network itself."""
    name = card.plan.name
    return bool(_LOCAL_NAME.fullmatch(name)) and name.lower() not in OWN_NAMES


def reverse_zones(subnet: IPv4Network | IPv6Network) -> list[str]:
    """The zones that have the names of a subnet's addresses (RFC 1035, RFC 3596)."""
    if isinstance(subnet, IPv6Network):
        digits = subnet.network_address.exploded.replace(":", "")[: subnet.prefixlen // 4]
        return [".".join(reversed(digits)) + ".ip6.arpa"]
    whole = min(subnet.prefixlen // 8 * 8 + (8 if subnet.prefixlen % 8 else 0), 24)
    parts = (
        subnet.subnets(new_prefix=whole)
        if whole > subnet.prefixlen
        else [subnet.supernet(new_prefix=whole) if whole < subnet.prefixlen else subnet]
    )
    zones = []
    for part in parts:
        labels = str(part.network_address).split(".")[: whole // 8]
        zones.append(".".join(reversed(labels)) + ".in-addr.arpa")
    return zones
