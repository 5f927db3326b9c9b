"""Picks subnets for networks, which collide with no route of the host and with no other network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network

from cerne.errors import CapacityError

POOL4 = (IPv4Network("10.64.0.0/10"),)
"""Where IPv4 subnets are picked, if the user names no pool."""


def pick_ipv4(
    taken: Iterable[IPv4Network], pool: Sequence[IPv4Network] = POOL4, size: int = 24
) -> IPv4Network:
    """A free IPv4 subnet with a prefix of `size` bits.

    `taken` are the subnets of other networks.

    Raises:
        CapacityError: the pool has none that is free.
    """
    raise CapacityError(f"{pool} has no free subnet of /{size}: {list(taken)}")


def pick_ipv6(taken: Iterable[IPv6Network]) -> IPv6Network:
    """A free /64 with random bits (RFC 4193)."""
    raise CapacityError(f"there is no free subnet: {list(taken)}")


def require_unrouted(subnet: IPv4Network | IPv6Network) -> None:
    """Refuse a subnet that the host has a route to, other than its default route.

    Raises:
        ConflictError: the route is named.
    """
