"""The rows of networks with names, and of machines' cards on them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cerne.errors import CapacityError, CerneError, ConflictError, InputError, NotFoundError
from cerne.host.process import ProcessIdentity
from cerne.manager.store import NetworkRow, Record, Store
from cerne.manager.store.migrations import MIGRATIONS
from cerne.spec.machine import machine_spec
from cerne.spec.resources import NetworkResources

NewRecord = Callable[[str], Record]


def _row(name: str, ipv4: str | None = "10.20.0.0/24", ipv6: str | None = None) -> NetworkRow:
    return NetworkRow(f"id-{name}", name, "{}", ipv4, ipv6, time.time())


def _on(record: Record, *networks: str, **asked: object) -> Record:
    spec = machine_spec(name=record.name, network=list(networks), **asked)
    return replace(record, spec=spec.model_dump_json())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


@pytest.fixture
def lan(store: Store) -> NetworkRow:
    row = _row("lan", "10.20.0.0/29", "fd00:20::/64")
    store.add_network(row)
    return row


def test_networks_are_found_by_their_names(store: Store, lan: NetworkRow) -> None:
    assert store.network("lan") == store.network(lan.id) == lan
    assert store.networks() == [lan]
    assert [event.subject_kind for event in store.events()] == ["network"]
    with pytest.raises(NotFoundError, match="there is no network named dmz"):
        store.network("dmz")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (_row("lan", "10.99.0.0/24"), "a network named lan already"),
        (_row("dmz", "10.20.0.0/16"), "overlaps with 10.20.0.0/29 of the network lan"),
        (_row("dmz", None, "fd00:20::/64"), "overlaps with fd00:20::/64"),
    ],
)
def test_a_name_or_a_subnet_is_given_once(
    store: Store, lan: NetworkRow, row: NetworkRow, said: str
) -> None:
    with pytest.raises(ConflictError, match=said):
        store.add_network(row)
    assert store.networks() == [lan]


def test_a_machine_gets_addresses_that_stay(
    store: Store, lan: NetworkRow, new_record: NewRecord
) -> None:
    first, second = (_on(new_record(name), "lan") for name in ("a", "b"))
    store.add(first)
    store.add(second)
    card = store.cards_of(second.id)[0]
    assert (store.cards_of(first.id)[0].ipv4, card.ipv4) == ("10.20.0.2", "10.20.0.3")
    assert card.ipv6 is not None and card.ipv6.startswith("fd00:20::")
    assert "ff:fe" in card.ipv6
    changed = _on(second, "lan", ports=["8080:80"], egress="none")
    store.change_spec(second, changed.spec, "port 8080")
    store.remove(first)
    assert store.cards_of(second.id) == {0: card}
    assert store.cards_on(lan.id) == [card]
    assert store.cards_on(lan.id, live=True) == []
    assert store.all_cards() == {second.id: [card]}


def test_addresses_are_given_as_asked(store: Store, lan: NetworkRow, new_record: NewRecord) -> None:
    text = "lan:address=10.20.0.5,fd00:20::5,mac=02:00:00:00:00:05"
    record, other = _on(new_record("a"), text), _on(new_record("b"), "lan:mac=02:00:00:00:00:06")
    store.add(record)
    store.add(other)
    first, second = store.cards_of(record.id)[0], store.cards_of(other.id)[0]
    assert (first.mac, first.ipv4, first.ipv6) == ("02:00:00:00:00:05", "10.20.0.5", "fd00:20::5")
    assert (second.ipv4, second.ipv6) == ("10.20.0.2", "fd00:20::ff:fe00:6")
    # Another address is taken over, and the former one leaves no row.
    store.change_spec(record, _on(record, "lan:address=10.20.0.6").spec, "address")
    assert [card.ipv4 for card in store.cards_of(record.id).values()] == ["10.20.0.6"]


@pytest.mark.parametrize(
    ("network", "asked", "kind", "said"),
    [
        ("dmz", {}, NotFoundError, "there is no network named dmz"),
        ("lan:address=10.20.0.2", {}, ConflictError, "a has the address 10.20.0.2"),
        ("lan:mac=02:00:00:00:00:02", {}, ConflictError, "a has the address 02:00:00:00:00:02"),
        ("lan:address=10.20.1.2", {}, InputError, "is not an address for a machine"),
        ("lan:address=10.20.0.1", {}, InputError, "is not an address for a machine"),
        ("lan:address=10.20.0.7", {}, InputError, "is not an address for a machine"),
        ("lan:address=fd00:20::1", {}, InputError, "is not an address for a machine"),
        ("closed:address=fd00:20::2", {}, InputError, "gives no such addresses"),
        ("lan", {"ports": ["8080:81"]}, ConflictError, "a publishes port 127.0.0.1:8080/tcp"),
        ("lan", {"ports": ["0.0.0.0:8080:81"]}, ConflictError, "a publishes port"),
    ],
)
def test_what_another_machine_has_is_refused(
    store: Store,
    lan: NetworkRow,
    new_record: NewRecord,
    network: str,
    asked: dict[str, object],
    kind: type[CerneError],
    said: str,
) -> None:
    store.add_network(_row("closed", "10.30.0.0/24"))
    store.add(_on(new_record("a"), "lan:mac=02:00:00:00:00:02", ports=["8080:80", "0:90"]))
    with pytest.raises(kind, match=said):
        store.add(_on(new_record("b"), network, **asked))
    assert store.find("b") is None
    assert len(store.cards_on(lan.id)) == 1


def test_the_same_port_of_another_address_or_protocol_is_another(
    store: Store, lan: NetworkRow, new_record: NewRecord
) -> None:
    store.add(_on(new_record("a"), "lan", ports=["8080:80"]))
    store.add(_on(new_record("b"), "lan", ports=["127.0.0.2:8080:80", "8080:80/udp"]))
    assert len(store.cards_on(lan.id)) == 2


def test_a_network_without_a_free_address_is_full(
    store: Store, lan: NetworkRow, new_record: NewRecord
) -> None:
    for number in range(5):
        store.add(_on(new_record(f"m{number}"), "lan"))
    with pytest.raises(CapacityError, match="the network lan has no free address"):
        store.add(_on(new_record("b"), "lan"))


def test_a_network_in_use_stays(store: Store, lan: NetworkRow, new_record: NewRecord) -> None:
    record = _on(new_record("a"), "lan")
    store.add(record)
    with pytest.raises(ConflictError, match="lan is in use by a") as refused:
        store.remove_network(lan)
    assert "cerne stop a; cerne network disconnect lan a\n" in refused.value.hint
    assert "cerne rm --force a" in refused.value.hint
    store.remove(record)
    store.remove_network(lan)
    store.remove_network(lan)
    assert store.networks() == []


def test_the_process_of_a_network_is_kept(store: Store, lan: NetworkRow) -> None:
    holder = ProcessIdentity(7, 8, "boot")
    store.set_holder(lan, holder)
    assert store.network("lan").holder == holder
    store.set_holder(lan, None)
    assert store.network("lan").holder is None


def test_what_a_card_may_reach_is_kept(
    store: Store, lan: NetworkRow, new_record: NewRecord
) -> None:
    record = _on(new_record("a"), "lan:rate=10M", allow=["deb.debian.org:80"])
    store.add(record)
    nic = json.loads(store.get(record.id).spec)["nics"][0]
    assert nic["rate"] == NetworkResources(receive=10 << 20, send=10 << 20).model_dump()


def test_a_store_of_before_has_no_networks(tmp_path: Path, new_record: NewRecord) -> None:
    store = Store(tmp_path / "store.sqlite")
    store.add(_on(new_record("a"), "user"))
    assert store.networks() == []
    assert store.all_cards() == {}
    assert len(MIGRATIONS) >= 10
