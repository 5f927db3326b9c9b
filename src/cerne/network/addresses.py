"""Picks subnets for networks, which collide with no route of the host and with no other network."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network

from cerne.errors import CapacityError, ConflictError, InputError

POOL4 = (IPv4Network("10.64.0.0/10"),)
"""Where IPv4 subnets are picked, if the user names no pool."""
_ULA_BITS = 56
_TRIES = 256


def pick_ipv4(
    taken: Iterable[IPv4Network], pool: Sequence[IPv4Network] = POOL4, size: int = 24
) -> IPv4Network:
    """A free IPv4 subnet with a prefix of `size` bits.

    `taken` are the subnets of other networks.

    Raises:
        CapacityError: the pool has none that is free.
        InputError: the pool has no subnet of this size.
    """
    used = [*taken, *_routed(4)]
    for part in pool:
        if part.prefixlen > size:
            raise InputError(
                f"{part} has no subnets of /{size}", hint=f"name a pool of /{size} or larger"
            )
        # The first tries are random: another host's networks seldom have the same subnet then.
        count = 1 << (size - part.prefixlen)
        tries = [secrets.randbelow(count) for _ in range(min(_TRIES, count))]
        for number in (*tries, *range(min(count, 1 << 16))):
            first = int(part.network_address) + (number << (32 - size))
            found = IPv4Network((first, size))
            if not any(found.overlaps(other) for other in used if isinstance(other, IPv4Network)):
                return found
    names = ", ".join(map(str, pool))
    raise CapacityError(f"no subnet of /{size} is free in {names}", hint="name a larger pool")


def pick_ipv6(taken: Iterable[IPv6Network]) -> IPv6Network:
    """A free /64 with random bits (RFC 4193)."""
    used = [*taken, *_routed(6)]
    while True:
        found = IPv6Network((0xFD << 120 | secrets.randbits(_ULA_BITS) << 64, 64))
        if not any(found.overlaps(other) for other in used if isinstance(other, IPv6Network)):
            return found


def require_unrouted(subnet: IPv4Network | IPv6Network) -> None:
    """Refuse a subnet that the host has a route to, other than its default route.

    Raises:
        ConflictError: the route is named.
    """
    for route, interface in _routes():
        if route.version == subnet.version and route.overlaps(subnet):
            raise ConflictError(
                f"this host has a route to {route} by {interface}, which overlaps {subnet}",
                hint="take another subnet; ip route shows which are in use",
            )


def _routed(version: int) -> list[IPv4Network | IPv6Network]:
    return [route for route, _ in _routes() if route.version == version]


def _routes() -> list[tuple[IPv4Network | IPv6Network, str]]:
    # Imported here, since most commands need no netlink.
    from cerne.network.links import Links

    with Links() as links:
        return list(links.routes())
