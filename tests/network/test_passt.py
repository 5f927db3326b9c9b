"""The arguments of passt on hosts with and without a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cerne.errors import HostError, InputError
from cerne.network.passt import ipv6_interface, passt_command, require_ipv6, require_one_address
from cerne.network.user import address6
from cerne.spec.ports import Protocols, PublishedPort

_MAC = "02:00:00:00:00:01"
_ADDRESSES = (
    "00000000000000000000000000000001 01 80 10 80       lo\n"
    "fd000000000000000000000000000002 02 40 00 80     eth0\n"
    "fe8000000000000000fc00fffe000001 02 40 20 80     eth0\n"
    "fe8000000000000000fc00fffe000002 03 40 20 80     eth1\n"
)
_ZERO = "0" * 32
_REJECT = f"{_ZERO} 00 {_ZERO} 00 {_ZERO} ffffffff 00000001 00000000 00200200       lo\n"
_NEAR = f"fd{'0' * 30} 40 {_ZERO} 00 {_ZERO} 00000100 00000001 00000000 00000001     eth0\n"
_FAR = f"{_ZERO} 00 {_ZERO} 00 {_ZERO} 00000400 00000001 00000000 00000003     eth1\n"


def test_ipv6_needs_a_default_route_or_a_published_port(tmp_path: Path) -> None:
    assert ipv6_interface(tmp_path) is None
    (tmp_path / "if_inet6").write_text(_ADDRESSES)
    (tmp_path / "ipv6_route").write_text(_NEAR + _REJECT)
    assert ipv6_interface(tmp_path) is None
    assert ipv6_interface(tmp_path, anyway=True) == "eth0"
    (tmp_path / "ipv6_route").write_text(_NEAR + _FAR + _REJECT)
    assert ipv6_interface(tmp_path) == "eth1"


@pytest.mark.parametrize(
    ("address", "expected"), [("127.0.0.1", "--ipv4-only"), ("::1", "fe80::2")]
)
def test_a_published_ipv6_address_gives_the_guest_ipv6(
    tmp_path: Path, address: str, expected: str
) -> None:
    (tmp_path / "if_inet6").write_text(_ADDRESSES)
    port = PublishedPort(address, 8080, 80)
    command = passt_command(Path("passt"), "3", "4", _MAC, [port], proc=tmp_path)
    assert expected in command
    assert f"{address}/8080:80" in command


def test_an_ipv6_port_is_refused_on_a_host_without_ipv6(tmp_path: Path) -> None:
    ports = [PublishedPort("127.0.0.1", 8080, 80), PublishedPort("::1", 8081, 80)]
    with pytest.raises(HostError, match=r"\[::1\]:8081") as refused:
        require_ipv6(ports, tmp_path)
    assert "127.0.0.1:8081:80" in refused.value.hint
    require_ipv6(ports[:1], tmp_path)


def test_a_port_at_two_addresses_is_refused() -> None:
    one, two = PublishedPort("127.0.0.1", 8080, 80), PublishedPort("::1", 8080, 80)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:8080/tcp and \[::1\]:8080/tcp"):
        require_one_address([one, two])
    other = PublishedPort("::1", 8080, 80, Protocols.UDP)
    require_one_address([one, other, *[PublishedPort("127.0.0.1", 0, 80)] * 2])


def test_the_hosts_loopback_is_mapped_only_if_that_is_asked(tmp_path: Path) -> None:
    closed = passt_command(Path("passt"), "3", "4", _MAC, proc=tmp_path)
    assert "--no-map-gw" in closed
    # The interface keeps it from looking for a default route.
    assert closed[closed.index("--interface") + 1] == "lo"
    opened = passt_command(Path("passt"), "3", "4", _MAC, maps_host=True, proc=tmp_path)
    assert "--no-map-gw" not in opened


def test_the_address_that_a_guest_takes_by_itself() -> None:
    assert address6("52:54:00:12:34:56") == "fd43:6572:6e65:0:5054:ff:fe12:3456"
