"""Networks with names and the machines on them, over a fake engine and fake networks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network

import pytest
from tests.manager.conftest import FakeEngine
from tests.manager.fake_network import FakeNetworks, cards_in, end, running
from tests.manager.test_faults import run_killed_at

from cerne.client.local import LocalHost
from cerne.engine.plan import LaunchPlan, NetworkNic
from cerne.errors import ConflictError, HostError, InputError, NotFoundError, StateError
from cerne.guest import ExecResult
from cerne.host.process import ProcessIdentity
from cerne.manager import Machine, Manager
from cerne.manager.machines.addresses import configure_cards
from cerne.manager.store.promises import NETWORK_MEMORY
from cerne.network import addresses, preflight
from cerne.network import network as mechanism
from cerne.network.plan import CardPlan
from cerne.spec.egress import parse_allowed
from cerne.spec.machine import machine_spec
from cerne.spec.named_network import network_spec


@pytest.fixture(autouse=True)
def networks(monkeypatch: pytest.MonkeyPatch) -> FakeNetworks:
    fake = FakeNetworks()
    monkeypatch.setattr(mechanism, "start_network", fake.start_network)
    monkeypatch.setattr(mechanism, "attach_network", fake.attach_network)
    monkeypatch.setattr(addresses, "pick_ipv4", lambda taken: _free4(list(taken)))
    monkeypatch.setattr(addresses, "pick_ipv6", lambda taken: _free6(list(taken)))
    monkeypatch.setattr(addresses, "require_unrouted", lambda subnet: None)
    monkeypatch.setattr(preflight, "lacks", lambda uplink: ())
    return fake


def _free4(taken: list[IPv4Network]) -> IPv4Network:
    return IPv4Network(f"10.64.{len(taken)}.0/24")


def _free6(taken: list[IPv6Network]) -> IPv6Network:
    return IPv6Network(f"fd00:{len(taken)}::/64")


def _create(manager: LocalHost, name: str, *networks: str, **asked: object) -> Machine:
    spec = machine_spec(
        name=name, image="blank", memory="64M", network=list(networks) or "lan", **asked
    )
    return manager.create(spec)


def _cards(manager: LocalHost) -> list[CardPlan]:
    return [card for directory in running(manager.home.runtime) for card in cards_in(directory)]


def _card(plan: LaunchPlan) -> NetworkNic:
    (nic,) = plan.nics
    assert isinstance(nic, NetworkNic)
    return nic


@pytest.fixture
def lan(manager: LocalHost) -> None:
    manager.create_network(network_spec("lan"))


@pytest.mark.usefixtures("lan")
def test_a_network_is_tried_when_it_is_made_and_runs_with_its_machines(
    manager: LocalHost, engine: FakeEngine, networks: FakeNetworks
) -> None:
    assert len(networks.started) == 1
    assert not running(manager.home.runtime)
    assert not manager.network("lan").runs
    first, second = _create(manager, "a"), _create(manager, "b")
    first.start()
    assert manager.network("lan").runs
    (card,) = _cards(manager)
    assert (card.name, str(card.ipv4)) == ("a", "10.64.0.2")
    assert card.egress is None
    plan = _card(engine.plans[-1])
    assert (plan.address, plan.gateway, plan.mask) == ("10.64.0.2", "10.64.0.1", "255.255.255.0")
    assert "ip=10.64.0.2::10.64.0.1:255.255.255.0:a:" in engine.plans[-1].network_parameter
    assert plan.tap is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(plan.tap)
    second.start()
    assert len(networks.started) == 2
    first.kill()
    assert [card.name for card in _cards(manager)] == ["b"]
    second.kill()
    assert not running(manager.home.runtime)
    assert not manager.network("lan").runs
    first.start()
    assert str(_cards(manager)[0].ipv4) == "10.64.0.2"


def test_the_default_network_is_made_when_a_machine_names_it(manager: LocalHost) -> None:
    with pytest.raises(NotFoundError, match="no network named lan"):
        _create(manager, "a", "lan")
    assert manager.networks() == []
    _create(manager, "a", "default")
    _create(manager, "b", "default")
    (network,) = manager.networks()
    assert [(card.machine, card.ipv4) for card in network.cards()] == [
        ("a", "10.64.0.2"),
        ("b", "10.64.0.3"),
    ]
    with pytest.raises(ConflictError, match="in use by a, b"):
        network.remove()
    for name in ("a", "b"):
        manager.get(name).remove()
    network.remove()
    assert manager.networks() == []


def test_a_network_that_does_not_start_is_not_made(
    manager: LocalHost, networks: FakeNetworks
) -> None:
    networks.failure = HostError("there is no nft", hint="sudo apt-get install nftables")
    with pytest.raises(HostError, match="no nft"):
        manager.create_network(network_spec("lan"))
    with pytest.raises(HostError, match="no nft"):
        _create(manager, "a", "default")
    networks.failure = None
    assert manager.networks() == []
    manager.create_network(network_spec("lan"))
    with pytest.raises(ConflictError, match="a network named lan already"):
        manager.create_network(network_spec("lan"))


@pytest.mark.usefixtures("lan")
def test_a_machine_whose_card_is_refused_does_not_start(
    manager: LocalHost, networks: FakeNetworks
) -> None:
    machine = _create(manager, "a")
    networks.failure = ConflictError("port 127.0.0.1:80/tcp is in use", hint="publish another")
    with pytest.raises(ConflictError, match="is in use"):
        machine.start()
    assert not running(manager.home.runtime)
    networks.failure = None
    machine.start()
    assert len(_cards(manager)) == 1


@pytest.mark.usefixtures("lan")
def test_what_a_card_may_reach_and_its_ports_are_given_to_its_network(
    manager: LocalHost, networks: FakeNetworks
) -> None:
    machine = _create(manager, "a", "lan:rate=1M", ports=["0:80", "8080:81"], egress="none")
    machine.start()
    (card,) = _cards(manager)
    assert card.egress == ()
    assert card.rate.receive == 1 << 20
    assert [port.host_port for port in machine.ports] == [40080, 8080]
    machine.change_nic(0, egress="all", allow=["deb.debian.org:80"])
    assert _cards(manager)[0].egress == (parse_allowed("deb.debian.org:80"),)
    assert [port.host_port for port in machine.publish("9090-9091:90-91/udp")] == [
        40080,
        8080,
        9090,
        9091,
    ]
    assert [port.host_port for port in machine.unpublish("40080")] == [8080, 9090, 9091]
    assert [port.host_port for port in _cards(manager)[0].ports] == [8080, 9090, 9091]
    with pytest.raises(NotFoundError, match="does not publish port 9090/tcp"):
        machine.unpublish("9090/tcp")
    with pytest.raises(ConflictError, match="8080/tcp already"):
        machine.publish("70:70", "8080:80")
    with pytest.raises(NotFoundError, match="does not publish port 71"):
        machine.unpublish("8080", "71")
    assert [port.host_port for port in machine.ports] == [8080, 9090, 9091]
    networks.failure = ConflictError("it is in use", hint="publish another")
    with pytest.raises(ConflictError):
        machine.publish("70:70")
    networks.failure = None
    assert [port.host_port for port in machine.ports] == [8080, 9090, 9091]
    with pytest.raises(ConflictError, match="a publishes port 127"):
        _create(manager, "b", ports=["8080:80"])


@pytest.mark.usefixtures("lan")
def test_a_card_is_connected_and_disconnected_while_its_machine_runs(
    manager: LocalHost, networks: FakeNetworks, engine: FakeEngine
) -> None:
    machine = _create(manager, "a", "none")
    machine.start()
    nic = machine.attach_nic("lan:address=10.64.0.9", ports=["8080:80"])
    assert (nic.slot, machine.nics()[1]) == (0, machine.cards[0].mac)
    (card,) = _cards(manager)
    assert (str(card.ipv4), card.ports[0].host_port) == ("10.64.0.9", 8080)
    with pytest.raises(InputError, match="is not a text"):
        machine.publish(["8081:81"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="lan is given twice"):
        machine.attach_nic("lan")
    assert len(_cards(manager)) == 1
    machine.disconnect("lan")
    assert not running(manager.home.runtime)
    assert machine.cards == []
    with pytest.raises(NotFoundError, match="has no card on the network lan"):
        machine.disconnect("lan")
    engine.failure = HostError("no room")
    with pytest.raises(HostError):
        machine.attach_nic("lan")
    assert (machine.cards, running(manager.home.runtime)) == ([], [])


@pytest.mark.usefixtures("lan")
def test_the_first_card_goes_only_while_the_machine_is_stopped(manager: LocalHost) -> None:
    machine = _create(manager, "a")
    machine.start()
    with pytest.raises(StateError, match="its first card stays"):
        machine.disconnect("lan")
    machine.kill()
    machine.disconnect("lan")
    assert machine.spec.nics == ()
    machine.start()


@pytest.mark.usefixtures("lan")
def test_a_fork_has_its_own_address_on_the_same_network(
    manager: LocalHost, networks: FakeNetworks, engine: FakeEngine
) -> None:
    machine = _create(manager, "a", "lan:address=10.64.0.9", ports=["8080:80"], egress="none")
    machine.start()
    first, second = machine.fork(2)
    cards = {card.name: card for card in _cards(manager)}
    assert {name: str(card.ipv4) for name, card in cards.items()} == {
        "a": "10.64.0.9",
        "a-1": "10.64.0.2",
        "a-2": "10.64.0.3",
    }
    assert len({card.mac for card in cards.values()}) == 3
    assert [card.egress for card in cards.values()] == [(), (), ()]
    assert not first.ports
    assert all(_card(plan).tap is not None for plan in engine.plans[-2:])
    for each in (first, second, machine):
        each.remove(force=True)
    assert not running(manager.home.runtime)
    manager.network("lan").remove()


@pytest.mark.usefixtures("lan")
def test_a_network_whose_process_was_killed_is_repaired(
    manager: LocalHost, networks: FakeNetworks
) -> None:
    machine = _create(manager, "a")
    machine.start()
    network = manager.network("lan")
    assert network.repair() == ()
    end(networks.started[-1].directory)
    assert network.state() is not None
    assert network.repair()[-1] == "the card of a lost its namespace: cerne restart a"
    assert network.runs
    assert [card.name for card in _cards(manager)] == ["a"]
    machine.kill()
    assert network.repair() == ()
    assert not running(manager.home.runtime)


@pytest.mark.usefixtures("lan")
def test_a_renamed_machine_has_its_new_name_on_the_network(
    manager: LocalHost, networks: FakeNetworks
) -> None:
    machine = _create(manager, "a")
    machine.rename("b")
    machine.start()
    assert [card.name for card in _cards(manager)] == ["b"]


@pytest.mark.usefixtures("lan")
def test_what_is_not_possible_is_refused(manager: LocalHost) -> None:
    with pytest.raises(InputError, match="is not an address for a machine"):
        _create(manager, "a", "lan:address=10.99.0.1")
    machine = _create(manager, "a", "user")
    machine.start()
    with pytest.raises(StateError, match="changes nothing while the machine runs"):
        machine.publish("8080:80")
    machine.kill()
    assert [port.host_port for port in machine.publish("8080:80")] == [8080]
    nothing = _create(manager, "b", "none")
    with pytest.raises(InputError, match="no card that publishes ports"):
        nothing.publish("8080:80")


def _start(manager: Manager) -> None:
    manager.get("web").start()


def _kill(manager: Manager) -> None:
    manager.get("other").kill()


def _attach(manager: Manager) -> None:
    manager.get("other").attach_nic("more", ports=["90:90"])


def _disconnect(manager: Manager) -> None:
    manager.get("other").disconnect("dmz")


def _publish(manager: Manager) -> None:
    manager.get("other").publish("91:91")


def _make_network(manager: Manager) -> None:
    manager.create_network(network_spec("new"))


def _remove_network(manager: Manager) -> None:
    manager.network("unused").remove()


@pytest.mark.parametrize(
    "operation",
    [_start, _kill, _attach, _disconnect, _publish, _make_network, _remove_network],
    ids=lambda operation: operation.__name__.strip("_"),
)
def test_a_command_that_is_killed_leaves_networks_that_the_next_one_puts_right(
    manager: LocalHost, operation: Callable[[Manager], None]
) -> None:
    for name in ("lan", "dmz", "more", "unused"):
        manager.create_network(network_spec(name))
    for step in range(40):
        _create(manager, "web")
        other = _create(manager, "other", ports=["70:70"])
        other.start()
        other.attach_nic("dmz")
        killed = run_killed_at(step, operation, manager.home)
        after = Manager(manager.home, lambda _requested: FakeEngine())
        for machine in after.machines():
            # What is noted of a machine's cards is what its network has.
            machine.remove(force=True)
        names = [network.name for network in after.networks()]
        assert running(manager.home.runtime) == []
        if "new" in names:
            after.network("new").remove()
        if "unused" not in names:
            after.create_network(network_spec("unused"))
        after.close()
        if not killed:
            assert step > 0
            return
    pytest.fail("it has too many steps")


@pytest.mark.usefixtures("lan")
def test_a_network_starts_again_after_a_reboot(manager: LocalHost, networks: FakeNetworks) -> None:
    machine = _create(manager, "a")
    machine.start()
    row = manager.network("lan").row
    end(networks.started[-1].directory)
    machine.kill()
    # As after a reboot: the process that is noted was one of another boot.
    manager._store.set_holder(row, ProcessIdentity(1, 1, "another boot"))
    assert not manager.network("lan").runs
    machine.start()
    assert manager.network("lan").runs
    assert [str(card.ipv4) for card in _cards(manager)] == ["10.64.0.2"]


@pytest.mark.usefixtures("lan")
def test_names_that_lead_to_others_are_refused_on_a_network(manager: LocalHost) -> None:
    for name in ("gateway", "Localhost"):
        with pytest.raises(ConflictError, match="has that name for itself"):
            _create(manager, name)
        assert [machine.name for machine in manager.machines()] == []
        _create(manager, name, "none").remove()
    _create(manager, "web")
    with pytest.raises(ConflictError, match="for the machine web"):
        _create(manager, "WEB")
    other = _create(manager, "WEB", "none")
    with pytest.raises(ConflictError, match="for the machine web"):
        other.attach_nic("lan")
    other.remove()
    other = _create(manager, "other")
    for name in ("Gateway", "Web"):
        with pytest.raises(ConflictError, match="has that name"):
            other.rename(name)
    assert manager.get("other").name == "other"
    other.rename("Other")


@pytest.mark.usefixtures("lan")
def test_the_processes_of_a_network_are_counted_while_it_runs(manager: LocalHost) -> None:
    machine = _create(manager, "a")
    before = _promised(manager)
    machine.start()
    assert _promised(manager) - before == {("a", 64 << 20), ("network lan", NETWORK_MEMORY)}
    machine.kill()
    assert _promised(manager) == before


def _promised(manager: LocalHost) -> set[tuple[str, int]]:
    return {
        (each.machine, each.amount)
        for each in manager.capacity().promises
        if each.resource == "memory"
    }


def test_a_public_subnet_is_said(manager: LocalHost) -> None:
    network = manager.create_network(network_spec("lan", ipv4="8.8.8.0/24"))
    assert "8.8.8.0/24 is not a private one" in network.notes()[0]
    assert not manager.create_network(network_spec("wan", ipv4="100.70.0.0/24")).notes()


@pytest.mark.usefixtures("lan")
def test_what_is_wrong_with_a_card_is_said(manager: LocalHost) -> None:
    machine = _create(manager, "a", ports=["8080:80"])
    manager.create_network(network_spec("wan"))
    with pytest.raises(InputError, match="egress must be 'all' or 'none', not 'maybe'"):
        machine.attach_nic("wan", egress="maybe")
    with pytest.raises(ConflictError, match=r"a publishes port 127.0.0.1:8080/tcp already") as had:
        machine.publish("8080:81")
    assert "cerne publish rm a 8080" in had.value.hint
    with pytest.raises(InputError, match="'lan' is not the number of a card") as odd:
        machine.change_nic("lan", rate="1M")  # type: ignore[arg-type]
    assert "machine.card_on('lan')" in odd.value.hint
    with pytest.raises(NotFoundError) as missing:
        machine.unpublish("8081")
    assert missing.value.hint == "see: cerne publish ls a"


@pytest.mark.usefixtures("lan")
def test_ports_of_the_host_are_opened_while_a_machine_runs(manager: LocalHost) -> None:
    machine = _create(manager, "a")
    machine.start()
    with pytest.raises(StateError) as refused:
        machine.adjust(host_access=["22"])
    assert "cerne network set lan a --host-access PORT" in refused.value.hint
    machine.change_nic(machine.card_on("lan"), host_access=["22", "80"])
    assert _cards(manager)[0].host_ports == (22, 80)


@pytest.mark.usefixtures("lan")
def test_clients_keep_their_addresses_on_the_card_with_the_default_route(
    manager: LocalHost,
) -> None:
    first, second = _create(manager, "a"), _create(manager, "b", "none")
    first.start()
    second.start()
    second.attach_nic("lan")
    assert {card.name: card.keeps_clients for card in _cards(manager)} == {"a": True, "b": False}


def test_the_only_card_of_a_machine_gives_the_gateway_whichever_number_it_has(
    manager: LocalHost,
) -> None:
    for name in ("lan", "dmz"):
        manager.create_network(network_spec(name))
    machine = _create(manager, "a", "lan", "dmz")
    context, agent = machine._context, _Agent()
    configure_cards(context, agent, restored=True)  # type: ignore[arg-type]
    assert agent.gateways == ["10.64.0.1", ""]
    machine.disconnect("lan")
    configure_cards(context, agent, restored=True)  # type: ignore[arg-type]
    assert agent.gateways == ["10.64.0.1", "", "10.64.1.1"]


class _Agent:
    """Notes the IPv4 gateway that each card of its guest gets."""

    def __init__(self) -> None:
        self.gateways: list[str] = []

    def run(self, argv: Sequence[str]) -> ExecResult:
        self.gateways.append(argv[8])
        return ExecResult(0, None, b"", b"")
