"""The rules of a network and the files of dnsmasq, as nft and dnsmasq read them."""

from __future__ import annotations

import json
import subprocess
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from cerne.host.programs import find_program
from cerne.network import dnsmasq
from cerne.network.plan import CardPlan, NetworkPlan
from cerne.network.rules import Card, bridge_rules, routing_rules
from cerne.spec.egress import parse_allowed
from cerne.spec.network import Uplink
from cerne.spec.resources import NetworkResources

_PLAN = NetworkPlan(
    "id",
    "lab",
    Uplink.USER,
    Path("/nowhere"),
    IPv4Network("10.64.7.0/24"),
    IPv4Address("10.64.7.1"),
    IPv6Network("fd00:64:7::/64"),
    IPv6Address("fd00:64:7::1"),
)
_NAMES = {5: "debian.org", 6: "debian.org", 7: "deb.debian.org"}
_ALLOWED = ("10.0.0.0/8:443", "deb.debian.org:80", "[2001:db8::/32]:53/udp", "192.0.2.7/udp")


def _card(number: int, **fields: object) -> Card:
    plan = CardPlan(
        mac=f"02:00:00:00:00:{number:02x}",
        machine=f"id-{number}",
        name=f"m{number}",
        ipv4=IPv4Address("10.64.7.0") + number,
        ipv6=IPv6Address("fd00:64:7::") + number,
    )
    values = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    return Card(number, CardPlan(**{**values, **fields}))


@pytest.mark.parametrize("uplink", list(Uplink))
def test_nft_takes_the_rules(uplink: Uplink) -> None:
    if find_program("nft") is None:
        pytest.skip("nft is not installed here")
    fields = {name: getattr(_PLAN, name) for name in _PLAN.__dataclass_fields__}
    plan = NetworkPlan(**{**fields, "uplink": uplink})
    cards = [
        _card(5),
        _card(6, egress=tuple(map(parse_allowed, _ALLOWED)), host_ports=(22, 80)),
        _card(7, egress=(), rate=NetworkResources(receive=100_000, send=100_000)),
        _card(8, ipv4=None),
        _card(9, ipv6=None),
        _card(10, ipv4=None, ipv6=None),
    ]
    for rules in (bridge_rules(plan, cards), routing_rules(plan, cards)):
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--net", "nft", "-j", "-e", "-f", "-"],
            input=json.dumps(rules),
            capture_output=True,
            text=True,
            check=False,
        )
        if "unshare" in done.stderr:
            pytest.skip(f"no namespace here: {done.stderr}")
        assert done.returncode == 0, done.stderr
        assert "postrouting" in done.stdout or "card10" in done.stdout


def test_what_is_gone_is_deleted_after_the_chains_that_named_it() -> None:
    commands = routing_rules(_PLAN, [], ["card6"], ["card6-1-4"])["nftables"]
    assert isinstance(commands, list)
    kinds = [next(iter(command)) for command in commands]
    assert kinds.index("delete") > max(index for index, kind in enumerate(kinds) if kind == "flush")
    names = [command["delete"] for command in commands if "delete" in command]
    assert [next(iter(each.values()))["name"] for each in names] == ["card6", "card6-1-4"]


def test_machines_have_their_lines_and_bad_names_have_none() -> None:
    cards = [_card(5), _card(6, name="bad\nname"), _card(7, ipv6=None)]
    assert dnsmasq.cards_file(cards).splitlines() == [
        "02:00:00:00:00:05,10.64.7.5,[fd00:64:7::5],m5,1h",
        "02:00:00:00:00:06,10.64.7.6,[fd00:64:7::6],1h",
        "02:00:00:00:00:07,10.64.7.7,m7,1h",
    ]
    hosts = dnsmasq.hosts(_PLAN, cards)
    assert "10.64.7.5 m5.internal m5\n" in hosts
    assert "fd00:64:7::5 m5.internal m5\n" in hosts
    assert "bad" not in hosts


def test_only_allowed_names_are_asked_for_machines_with_a_list() -> None:
    cards = [_card(6, egress=tuple(map(parse_allowed, _ALLOWED)))]
    closed = dnsmasq.closed_configuration(_PLAN, "/dns", [5301], cards).splitlines()
    assert [line for line in closed if line.startswith("server=")] == [
        "server=/deb.debian.org/127.0.0.1#5301"
    ]
    assert _nftset("deb.debian.org", (cards[0], "deb.debian.org")) in closed
    assert "dhcp" not in "\n".join(closed)


def test_a_name_fills_the_sets_of_all_cards_that_may_reach_it() -> None:
    cards = [_card(number, egress=(parse_allowed(name),)) for number, name in _NAMES.items()]
    lines = dnsmasq.configuration(_PLAN, "/dns", [5301], cards).splitlines()
    first, second, third = cards
    above = (first, "debian.org"), (second, "debian.org")
    assert [line for line in lines if line.startswith("nftset=")] == [
        _nftset("deb.debian.org", *above, (third, "deb.debian.org")),
        _nftset("debian.org", *above),
    ]


def _nftset(name: str, *sets: tuple[Card, str]) -> str:
    of = [f"{each}#inet#cerne#{card.named_set(its, each)}" for card, its in sets for each in (4, 6)]
    return f"nftset=/{name}/{','.join(of)}"


@pytest.mark.parametrize(
    ("subnet", "zones"),
    [
        ("10.64.7.0/24", ["7.64.10.in-addr.arpa"]),
        ("10.64.6.0/23", ["6.64.10.in-addr.arpa", "7.64.10.in-addr.arpa"]),
        ("10.64.7.16/28", ["7.64.10.in-addr.arpa"]),
        ("172.16.0.0/16", ["16.172.in-addr.arpa"]),
    ],
)
def test_the_zones_of_a_subnet(subnet: str, zones: list[str]) -> None:
    assert dnsmasq.reverse_zones(IPv4Network(subnet)) == zones


def test_the_zone_of_an_ipv6_subnet() -> None:
    zone = "0.0.0.0.7.0.0.0.4.6.0.0.0.0.d.f.ip6.arpa"
    assert dnsmasq.reverse_zones(IPv6Network("fd00:64:7::/64")) == [zone]
