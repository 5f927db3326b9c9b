"""Published ports: whether they are free."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cerne.errors import ConflictError, HostError, InputError
from cerne.network.ports import chosen, require_free
from cerne.spec.ports import Protocols, PublishedPort


@pytest.fixture
def taken() -> Iterator[int]:
    """A TCP port of loopback that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_free_port_is_left_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
    port = PublishedPort("127.0.0.1", number, 80)
    require_free([port])
    require_free([port])


def test_a_port_in_use_is_named(taken: int) -> None:
    with pytest.raises(ConflictError, match=f"127.0.0.1:{taken}/tcp"):
        require_free([PublishedPort("127.0.0.1", taken, 80)])


def test_a_port_in_use_is_not_free_on_all_addresses(taken: int) -> None:
    with pytest.raises(ConflictError):
        require_free([PublishedPort("0.0.0.0", taken, 80)])


def test_a_udp_port_in_use_is_named() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        number: int = other.getsockname()[1]
        with pytest.raises(ConflictError, match="udp"):
            require_free([PublishedPort("127.0.0.1", number, 53, Protocols.UDP)])


def test_a_port_at_an_ipv6_address_is_another_one(taken: int) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no IPv6")
    with listener:
        number: int = listener.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"\[::1\]:{number}/tcp"):
            require_free([PublishedPort("::1", number, 80)])
    require_free([PublishedPort("::1", number, 80)])
    with chosen([PublishedPort("::1", 0, 80), PublishedPort("127.0.0.1", 0, 80)]) as ports:
        assert all(port.host_port for port in ports)


def test_an_address_of_another_host_is_refused() -> None:
    with pytest.raises(InputError, match=r"192\.0\.2\.1"):
        require_free([PublishedPort("192.0.2.1", 8080, 80)])


def test_a_privileged_port_is_refused_with_the_remedy() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if os.geteuid() == 0 or first < 2:
        pytest.skip("this user may have every port")
    with pytest.raises(HostError) as caught:
        require_free([PublishedPort("127.0.0.1", first - 1, 80)])
    assert "ip_unprivileged_port_start" in caught.value.hint


def test_any_free_port_is_held_until_its_server_listens() -> None:
    asked = (PublishedPort("127.0.0.1", 0, 80), PublishedPort("127.0.0.1", 0, 81))
    with chosen(asked) as (first, second):
        assert first.guest_port == 80
        assert 0 < first.host_port != second.host_port > 0
        # What is bound by others as usual is refused; a server that may reuse it is not.
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", first.host_port))
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("127.0.0.1", first.host_port))
            server.listen()


def test_a_port_that_was_named_is_not_chosen() -> None:
    named = PublishedPort("127.0.0.1", 8080, 80)
    with chosen([named, PublishedPort("127.0.0.1", 0, 53, Protocols.UDP)]) as (first, second):
        assert first == named
        assert second.host_port > 0


def test_any_port_of_an_address_that_is_not_this_hosts_is_refused() -> None:
    with pytest.raises(InputError, match=r"192.0.2.1 is not an address"):
        require_free([PublishedPort("192.0.2.1", 0, 80)])
