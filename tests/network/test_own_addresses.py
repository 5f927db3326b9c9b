"""Whether an address is the host's, as the kernel says."""

from __future__ import annotations

import socket

import pytest
from tests.addresses import own_address

from cerne.network.own_addresses import OwnAddresses


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1", True),
        ("127.44.0.1", True),
        ("255.255.255.255", True),
        ("224.0.0.1", True),
        ("::1", True),
        ("198.51.100.7", False),
        ("2001:db8::7", False),
    ],
)
def test_the_kernel_is_asked(address: str, own: bool) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    asked = OwnAddresses()
    assert asked.has(socket.inet_pton(family, address)) == own
    # A second question on the same socket.
    assert not asked.has(socket.inet_aton("198.51.100.8"))
    asked.close()


def test_the_addresses_of_the_hosts_interfaces_are_its_own() -> None:
    assert OwnAddresses().has(socket.inet_aton(own_address()))
