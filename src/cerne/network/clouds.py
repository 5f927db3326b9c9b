"""Addresses that no guest may reach: the services that a cloud gives to its own machines.

The metadata services of 169.254.0.0/16 are link-local, and closed with that range.
"""

from __future__ import annotations

SERVICES4 = ("100.100.100.200/32", "168.63.129.16/32")
"""Alibaba, Azure."""
SERVICES6 = ("fd00:ec2::/32", "fd20:ce::254/128")
"""Amazon, Google."""
FORMS4 = "::/16"
"""Forms of IPv4 addresses in IPv6 (RFC 4291, section 2.5), with the loopback and no address.

The kernel forwards packets to them, and who connects to one reaches the IPv4 address in it.
"""
TRANSLATION = "64:ff9b::"
"""The start of 96 bits of IPv6 addresses that are IPv4 addresses behind NAT64 (RFC 6052)."""
