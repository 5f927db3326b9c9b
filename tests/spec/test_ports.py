"""Published ports, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.errors import InputError
from cerne.spec.ports import Protocols, PublishedPort, check_port, parse_publish

PORTS = st.integers(1, 65535)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", PublishedPort("127.0.0.1", 8080, 80)),
        ("0.0.0.0:8080:80", PublishedPort("0.0.0.0", 8080, 80)),
        ("5353:53/udp", PublishedPort("127.0.0.1", 5353, 53, Protocols.UDP)),
        ("127.0.0.2:8080:80/tcp", PublishedPort("127.0.0.2", 8080, 80)),
        ("0:80", PublishedPort("127.0.0.1", 0, 80)),
        (" 1:65535 ", PublishedPort("127.0.0.1", 1, 65535)),
    ],
)
def test_ports_are_read(text: str, port: PublishedPort) -> None:
    assert parse_publish(text) == port


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        ":80",
        "80:",
        "80:0",
        "65536:80",
        "80:65536",
        "-1:80",
        "eighty:80",
        "80:80/sctp",
        "80:80/",
        "example.org:80:80",
        "1.2.3:80:80",
        "::1:80:80",
        "[1.2.3.4]:80:80:80",
        "[::1]]:80:80",
        "80:80\n,hostfwd=tcp::22-:22",
        "٨٠:80",
        f"{'9' * 5000}:80",
    ],
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_publish(text)


@given(PORTS, PORTS, st.sampled_from(Protocols), st.ip_addresses(v=4))
def test_what_is_written_is_read(host: int, guest: int, protocol: Protocols, ip: object) -> None:
    expected = PublishedPort(str(ip), host, guest, protocol)
    assert parse_publish(f"{ip}:{host}:{guest}/{protocol}") == expected


@given(st.text(alphabet="0123456789.:[]/abcdeftcpu, =-\n", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        port = parse_publish(text)
    except InputError:
        return
    assert 0 <= port.host_port <= 65535
    assert 1 <= port.guest_port <= 65535
    assert not set(port.host_address) & set(", =-\n[]/")


@pytest.mark.parametrize(
    ("text", "port", "short"),
    [
        ("[::1]:18080:80", PublishedPort("::1", 18080, 80), "[::1]:18080->80"),
        ("[::]:53:5353/udp", PublishedPort("::", 53, 5353, Protocols.UDP), "[::]:53->5353/udp"),
    ],
)
def test_an_ipv6_address_of_the_host(text: str, port: PublishedPort, short: str) -> None:
    assert parse_publish(text) == port
    assert parse_publish(text).short == short
    check_port(port)
