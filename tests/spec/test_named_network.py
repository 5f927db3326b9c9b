"""The specification of a network with a name, and of cards on one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cerne.errors import InputError
from cerne.spec.egress import Allowed, parse_allowed
from cerne.spec.machine import MachineSpec, machine_spec
from cerne.spec.named_network import NetworkSpec, network_spec
from cerne.spec.network import Uplink
from cerne.spec.nic import Nic
from cerne.spec.ports import Protocols, parse_publish, parse_publishes
from cerne.spec.resources import NetworkResources


def test_a_network_has_a_way_out_and_subnets() -> None:
    spec = network_spec("lan", ipv4="10.20.0.0/24", ipv6="FD00:20::/64")
    assert (spec.uplink, spec.ipv4, spec.ipv6) == (Uplink.USER, "10.20.0.0/24", "fd00:20::/64")
    assert NetworkSpec.model_validate_json(spec.model_dump_json()) == spec
    assert network_spec("lan", uplink="bridge", parent="br0", vlan=7).vlan == 7


@pytest.mark.parametrize(
    ("name", "asked", "said"),
    [
        ("user", {}, "is a reserved word"),
        ("UPPER", {}, "is not valid as a network's name"),
        ("lan", {"ipv4": "10.20.0.1/24"}, "is not a subnet"),
        ("lan", {"ipv4": "10.20.0.0/30"}, "is not an IPv4 subnet of /8 to /29"),
        ("lan", {"ipv4": "fd00::/64"}, "is not an IPv4 subnet"),
        ("lan", {"ipv6": "10.20.0.0/24"}, "is not an IPv6 subnet"),
        ("lan", {"ipv6": "fd00::/48"}, "is not an IPv6 subnet of /64"),
        ("lan", {"ipv4": "127.0.0.0/8"}, "has no addresses for machines"),
        ("lan", {"uplink": "bridge"}, "no parent"),
        ("lan", {"uplink": "bridge", "parent": "a/b"}, "is not a name of an interface"),
        ("lan", {"uplink": "bridge", "parent": "br0", "ipv4": "10.0.0.0/24"}, "has a subnet"),
        ("lan", {"parent": "br0"}, "has a parent or a VLAN"),
        ("lan", {"vlan": 7}, "has a parent or a VLAN"),
        ("lan", {"uplink": "bridge", "parent": "br0", "vlan": 4095}, "vlan must be"),
        ("lan", {"uplink": "wifi"}, "uplink must be"),
        ("lan", {"colour": "red"}, "has no field colour"),
    ],
)
def test_what_is_no_network_is_refused(name: str, asked: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        network_spec(name, **asked)


def test_an_address_in_place_of_a_subnet_is_answered_with_its_subnet() -> None:
    with pytest.raises(InputError) as refused:
        network_spec("lan", ipv4="10.20.0.1/24")
    assert refused.value.hint == "its subnet is 10.20.0.0/24"


@pytest.mark.parametrize("ports", ["0", "00-0", "0-80", "70000", "90-80"])
def test_ports_that_no_rule_can_allow_are_refused(ports: str) -> None:
    with pytest.raises(InputError, match="ports that are not valid"):
        parse_allowed(f"192.0.2.7:{ports}")


def test_a_card_has_addresses_and_what_it_may_reach() -> None:
    spec = machine_spec(
        name="web",
        network=["lan:address=10.20.0.5,fd00:20::5,mac=02-00-00-00-00-05,rate=10M/2M", "dmz"],
        ports=["18500-18502:80-82", "53:53/udp"],
        allow=["10.1.2.3/16:443", "Deb.Debian.org:80-81/tcp", "[2001:db8::1]"],
    )
    first, second = spec.nics
    assert (first.network, first.slot, second.network, second.slot) == ("lan", None, "dmz", 7)
    assert (first.address4, first.address6) == ("10.20.0.5", "fd00:20::5")
    assert first.mac == "02:00:00:00:00:05"
    assert first.rate == NetworkResources(receive=10 << 20, send=2 << 20)
    assert [port.guest_port for port in first.ports] == [80, 81, 82, 53]
    assert first.allow == (
        Allowed("10.1.0.0/16", 443, 443),
        Allowed("deb.debian.org", 80, 81, Protocols.TCP),
        Allowed("2001:db8::1/128"),
    )
    assert [each.is_name for each in first.allow] == [False, True, False]
    assert MachineSpec.model_validate_json(spec.model_dump_json()) == spec
    assert machine_spec(name="web", network="lan", egress="none").nics[0].egress == "none"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"network": "lan:colour=red"}, "is not an option of the network"),
        ({"network": "lan:mac=02:00:00:00:00:05,mac=02:00:00:00:00:06"}, "is not an option"),
        ({"network": "lan:address=10.20.0.5,10.20.0.6"}, "is not an address for a network card"),
        ({"network": "lan:address=10.20.0.256"}, "is not an address for a network card"),
        ({"network": "lan:address=ff02::1"}, "is not an address for a network card"),
        ({"network": "lan:mac=01:00:00:00:00:05"}, "is not an address of a network card"),
        ({"network": "lan:mac=nonsense"}, "is not an address of a network card"),
        ({"network": ["lan", "lan"]}, "the network lan is given twice"),
        ({"network": "lan", "allow": ["8080"]}, "is not a target"),
        ({"network": "lan", "allow": ["host"]}, "is not a target"),
        ({"network": "lan", "allow": ["10.0.0.300:80"]}, "is not a target"),
        ({"network": "lan", "allow": ["10.0.0.1:90-80"]}, "ports that are not valid"),
        ({"network": "lan", "allow": ["10.0.0.1", "10.0.0.1/32"]}, "is given twice"),
        ({"network": "lan", "allow": ["10.0.0.1"], "egress": "none"}, "may reach nothing"),
        ({"network": "user", "egress": "none"}, "a card on 'user' has no egress"),
        ({"network": "user", "allow": ["10.0.0.1"]}, "a card on 'user' has no allow"),
        ({"network": "tap:tap0:mac=02:00:00:00:00:05"}, "is not a network"),
        ({"network": ["lan", "none"]}, "is not a network for a card"),
        ({"network": "lan", "ports": ["80-82:80-81"]}, "not of the same size"),
        ({"network": "lan", "ports": ["82-80:82-80"]}, "is not a range"),
        ({"network": "lan", "ports": ["0-2:80-82"]}, "is not a range"),
        ({"network": "lan", "ports": ["1-1000:1-1000"]}, "is not a range"),
        ({"network": "lan", "ports": ["80:80", "80:81"]}, "is given twice"),
    ],
)
def test_what_is_no_card_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        machine_spec(name="web", **asked)


def test_a_copy_has_its_own_addresses_and_may_reach_the_same() -> None:
    text = "lan:address=10.20.0.5,mac=02:00:00:00:00:05,rate=1M"
    spec = machine_spec(name="web", network=text, ports=["80:80"], allow=["10.1.0.0/16"])
    (copy,) = spec.copied().on_network("lan", ["81:80"]).nics
    assert copy == Nic(
        network="lan",
        ports=(parse_publish("81:80"),),
        allow=spec.nics[0].allow,
        rate=spec.nics[0].rate,
    )
    assert spec.with_ports([parse_publish("90:80")]).ports == (parse_publish("90:80"),)


def test_a_card_of_another_network_is_written_as_by_older_versions() -> None:
    written = json.loads(machine_spec(name="web").model_dump_json())
    assert written["nics"] == [{"slot": None, "network": "user", "ports": []}]


@given(st.text(alphabet="0123456789abcdef.:/[]-tcpu", max_size=40))
def test_any_target_is_read_or_refused(text: str) -> None:
    try:
        allowed = parse_allowed(text)
    except InputError:
        return
    assert parse_allowed(str(allowed)) == allowed


@given(st.text(alphabet="0123456789.:[]/-tcpu", max_size=40))
def test_any_range_is_read_or_refused(text: str) -> None:
    try:
        ports = parse_publishes(text)
    except InputError:
        return
    assert 1 <= len(ports) <= 256
