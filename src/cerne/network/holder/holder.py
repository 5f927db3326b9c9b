"""The holder's state: the network and its cards, and the requests that change them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path

from cerne.errors import CerneError, ConflictError, HostError, InputError, NotFoundError
from cerne.host.members import Members
from cerne.network import rules, stored
from cerne.network.control import Message
from cerne.network.holder import nft
from cerne.network.holder.namespace import Inside, Worker
from cerne.network.holder.relay import Address, Relay, bound, relay
from cerne.network.holder.services import Services, require_name_sets
from cerne.network.holder.uplinks import make_uplink
from cerne.network.links import Links, has_ipv6, set_sysctl
from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkState
from cerne.network.ports import refusal
from cerne.network.rules import BRIDGE, Card
from cerne.network.tap import make_tap
from cerne.spec.network import Uplink
from cerne.spec.ports import Protocols, PublishedPort

ANCHOR = "anchor"
"""The role of the process that has the namespace if the holder is killed."""
CARDS = "cards.json"
_ROUTER = IPv6Interface(f"{rules.ROUTER}/64")
_NO_IPV6 = "this host's kernel has no IPv6, and so this network has none"
_LOOPBACK = "127.0.0.1"
_LOOK_AGAIN = 30.0
_SETTLE = 0.3
_NETFILTER, _RULES_GROUP, _TABLES = 12, 1 << 6, 10
"""NETLINK_NETFILTER, its group NFNLGRP_NFTABLES, and the subsystem of nf_tables."""
_DELETIONS = frozenset((2, 5, 8))
"""NFT_MSG_DELTABLE, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE (<linux/netfilter/nf_tables.h>)."""
_ADDRESS_GROUPS = 1 << 4 | 1 << 8
"""RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR."""
_HEADER = struct.Struct("=IHHII")


class _Held:
    """A card, its published ports, and the relays that serve them."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.relays: dict[PublishedPort, tuple[PublishedPort, Relay]] = {}
        """By the port that was asked for: the port that is published."""

    @property
    def ports(self) -> tuple[PublishedPort, ...]:
        """The ports that are published."""
        return tuple(self.relays[port][0] for port in self.card.plan.ports if port in self.relays)

    def target(self, port: PublishedPort) -> Address | None:
        """Where a published port leads."""
        plan = self.card.plan
        addresses = [plan.ipv4, plan.ipv6]
        if ":" in port.host_address:
            addresses.reverse()
        address = next((each for each in addresses if each is not None), None)
        return None if address is None else Address(str(address), port.guest_port)

    def close(self) -> None:
        """Publish nothing any more."""
        for _, each in self.relays.values():
            each.close()
        self.relays.clear()


class Holder:
    """One network."""

    def __init__(self, plan: NetworkPlan, inside: Inside, members: Members) -> None:
        if not has_ipv6():
            plan = replace(plan, ipv6=None, gateway6=None)
        self._plan = plan
        self._inside = inside
        self._members = members
        self._uplink = make_uplink(plan, inside, members)
        self._services = None if plan.uplink is Uplink.BRIDGE else Services(plan, inside, members)
        self._cards: dict[str, _Held] = {}
        self._applied: set[str] = set()
        self._applied_sets: set[str] = set()
        self._host_relays: dict[Address, Relay] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._host = Worker()
        self._own = self._host.call(_addresses)
        """The addresses of the host, which machines do not reach."""

    def start(self) -> None:
        """Make the bridge, the rules, the services and the way out.

        Raises:
            CerneError: one of them failed.
        """
        former = self._stored()
        for card in former:
            self._cards[card.plan.mac] = _Held(Card(card.number, card.plan))
        self._ensure_anchor()
        self._inside.call(_make_bridge, self._plan)
        self._apply_rules()
        self._uplink.connect()
        if self._services is not None:
            self._services.start(self._all())
        for card in former:
            with contextlib.suppress(ConflictError, HostError, InputError):
                self._publish(self._cards[card.plan.mac], card.plan, card.ports)
        self._sync_host_ports()
        self._watch_rules(self._inside.call(_rule_changes))
        if self._plan.uplink is Uplink.NAT:
            self._watch_rules(_rule_changes())
        self._watch_addresses(_address_changes())
        asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._look_regularly)

    def handle(self, request: Message) -> tuple[object, int | None]:
        """Answer a request; the second value is a descriptor to hand over.

        Raises:
            CerneError: it is not possible.
        """
        match request.get("do"):
            case "add":
                return None, self._add(stored.card_plan().validate_python(request["card"]))
            case "set":
                return self._set(stored.card_plan().validate_python(request["card"])), None
            case "remove":
                self._remove(str(request["mac"]))
                return None, None
            case "state":
                state = self._state()
                return stored.network_state().dump_python(state, mode="json"), None
            case "repair":
                cards = request["cards"]
                assert isinstance(cards, list)
                plans = [stored.card_plan().validate_python(card) for card in cards]
                return self._repair(plans), None
            case unknown:
                raise InputError(f"there is no request {unknown!r}")

    def _all(self) -> list[Card]:
        return [held.card for held in self._cards.values()]

    def _add(self, plan: CardPlan) -> int:
        former = self._cards.get(plan.mac)
        if former is not None and self._is_connected(former.card):
            raise ConflictError(f"another card of the network has the MAC {plan.mac}")
        self._require_free(plan)
        number = former.card.number if former else self._free_number()
        held = _Held(Card(number, plan))
        if former is not None:
            former.close()
        self._cards[plan.mac] = held
        descriptor = -1
        try:
            self._publish(held, plan)
            self._apply_rules()
            descriptor = self._inside.call(_make_card, held.card, self._plan.mtu)
            self._sync_host_ports()
            self._tell()
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            held.close()
            del self._cards[plan.mac]
            with contextlib.suppress(CerneError):
                self._apply_rules()
                self._sync_host_ports()
                self._tell()
            raise
        return descriptor

    def _set(self, plan: CardPlan) -> object:
        held = self._required(plan.mac)
        self._require_free(plan)
        former = held.card
        self._publish(held, plan)
        held.card = Card(former.number, plan)
        try:
            self._apply_rules()
            if self._is_connected(held.card):
                self._inside.call(_set_rate, held.card)
            self._sync_host_ports()
            self._tell()
        except BaseException:
            held.card = former
            with contextlib.suppress(CerneError):
                self._publish(held, former.plan)
                self._apply_rules()
            raise
        return stored.card_state().dump_python(self._card_state(held), mode="json")

    def _remove(self, mac: str) -> None:
        held = self._cards.pop(mac, None)
        if held is None:
            return
        held.close()
        self._inside.call(_remove_link, held.card.tap)
        self._apply_rules()
        self._sync_host_ports()
        self._tell()

    def _repair(self, plans: Iterable[CardPlan]) -> list[str]:
        """Have these cards, and all else; say what was done."""
        done = self._mend()
        wanted = {plan.mac: plan for plan in plans}
        for mac in set(self._cards) - set(wanted):
            self._remove(mac)
            done.append(f"removed the card {mac}, which no machine has")
        for mac, plan in wanted.items():
            held = self._cards.get(mac)
            if held is None:
                held = _Held(Card(self._free_number(), plan))
                self._cards[mac] = held
                done.append(f"added the card {mac} of {plan.name}")
            if held.card.plan != plan or len(held.relays) != len(plan.ports):
                self._publish(held, plan)
                held.card = Card(held.card.number, plan)
        self._apply_rules()
        self._sync_host_ports()
        self._tell()
        return done

    def _mend(self) -> list[str]:
        """Make again what is missing; say what it was."""
        done = []
        if self._ensure_anchor():
            done.append("started the process that has the namespace")
        if self._inside.call(_lost_bridge, self._plan):
            self._inside.call(_make_bridge, self._plan)
            self._inside.call(_join_taps, self._all())
            done.append("made the bridge again")
            if self._services is not None:
                # Its sockets are those of the former bridge.
                self._services.restart()
            if self._plan.uplink is Uplink.BRIDGE:
                self._uplink.connect()
        if self._inside.call(_lost_rules):
            self._applied = set()
            self._applied_sets = set()
            self._apply_rules()
            if self._applied_sets and self._services is not None:
                # Addresses of answers that it kept would not be in the new sets.
                self._services.restart()
            done.append("set the rules again")
        if not self._uplink.connected():
            self._uplink.connect()
            done.append(f"connected the uplink {self._plan.uplink} again")
        if self._services is not None and self._services.lost(self._all()):
            self._services.repair(self._all())
            done.append("started dnsmasq again")
        return done

    def _faults(self) -> list[str]:
        faults = []
        if self._inside.call(_lost_bridge, self._plan):
            faults.append("the bridge is missing")
        if self._inside.call(_lost_rules):
            faults.append("the rules are missing")
        if not self._uplink.connected():
            faults.append(f"the uplink {self._plan.uplink} is not connected")
        if self._services is not None and self._services.lost(self._all()):
            faults.append(f"dnsmasq does not run: {self._services.said}")
        return faults

    def _state(self) -> NetworkState:
        processes: dict[str, int | None] = {"holder": os.getpid(), **self._uplink.processes()}
        if self._services is not None:
            processes["dnsmasq"] = self._services.pid
        return NetworkState(
            cards=tuple(self._card_state(held) for held in self._cards.values()),
            processes={name: pid for name, pid in processes.items() if pid is not None},
            faults=tuple(self._faults()),
            notes=(*self._uplink.notes(), *([] if has_ipv6() else [_NO_IPV6])),
            interfaces=self._uplink.interfaces,
        )

    def _card_state(self, held: _Held) -> CardState:
        card = held.card
        return CardState(card.plan, card.tap, held.ports, self._is_connected(card))

    def _is_connected(self, card: Card) -> bool:
        return self._inside.call(_has_link, card.tap)

    def _required(self, mac: str) -> _Held:
        if mac not in self._cards:
            raise NotFoundError(f"the network has no card with the MAC {mac}")
        return self._cards[mac]

    def _require_free(self, plan: CardPlan) -> None:
        """Refuse a card that does not work here, or whose address or name another machine has."""
        if any(allowed.is_name for allowed in plan.egress or ()):
            require_name_sets()
        for mac, held in self._cards.items():
            other = held.card.plan
            if mac == plan.mac:
                continue
            for address in (plan.ipv4, plan.ipv6):
                if address is not None and address in (other.ipv4, other.ipv6):
                    raise ConflictError(f"{other.name} has the address {address}")
            if other.name.lower() == plan.name.lower() and other.machine != plan.machine:
                raise ConflictError(f"another machine of the network has the name {plan.name}")

    def _free_number(self) -> int:
        used = {held.card.number for held in self._cards.values()}
        links = self._inside.call(_link_names)
        return next(
            number
            for number in range(1, 1 << 16)
            if number not in used and f"card{number}" not in links
        )

    def _publish(self, held: _Held, plan: CardPlan, before: Iterable[PublishedPort] = ()) -> None:
        """Have exactly the ports of a plan published; if one is not free, nothing changes.

        A port that Cerne chooses has the number that it had `before`, if that is free.
        """
        if plan.ports and self._plan.uplink is Uplink.BRIDGE:
            raise InputError(
                f"{plan.name} publishes ports, and its network is a part of {self._plan.parent}",
                hint="leave --publish out: the machine has an address of that network",
            )
        new = [port for port in plan.ports if port not in held.relays]
        bound_now: dict[PublishedPort, tuple[PublishedPort, socket.socket]] = {}
        try:
            for port in new:
                bound_now[port] = _bound_as_before(port, before)
        except BaseException:
            for _, listener in bound_now.values():
                listener.close()
            raise
        for port in set(held.relays) - set(plan.ports):
            held.relays.pop(port)[1].close()
        for port, (published, listener) in bound_now.items():
            serving = relay(
                listener,
                port.protocol,
                self._make_inside,
                _leading(held, port),
                lambda client: self._keeps_client(held, client),
            )
            held.relays[port] = (published, serving)

    def _keeps_client(self, held: _Held, client: str) -> bool:
        """Whether a machine can answer a client's own address: by its gateway, as no neighbour."""
        address = ip_address(client)
        own = (self._plan.ipv4, self._plan.ipv6)
        local = address.is_loopback or address.is_link_local or address.is_unspecified
        kept = held.card.plan.keeps_clients and not local
        return kept and not any(subnet is not None and address in subnet for subnet in own)

    def _sync_host_ports(self) -> None:
        """Have the host's ports that cards may reach at the gateway's addresses."""
        numbers = {port for held in self._cards.values() for port in held.card.plan.host_ports}
        gateways = [self._plan.gateway4, self._plan.gateway6]
        wanted = {
            Address(str(gateway), number)
            for gateway in gateways
            if gateway is not None
            for number in numbers
        }
        for address in set(self._host_relays) - wanted:
            self._host_relays.pop(address).close()
        for address in wanted - set(self._host_relays):
            try:
                listener = bound(self._make_inside, Protocols.TCP, address)
            except OSError as error:
                raise HostError(
                    f"port {address.port} of the gateway is not free: {error.strerror}"
                ) from error
            to = _always(Address(_LOOPBACK, address.port))
            self._host_relays[address] = relay(listener, Protocols.TCP, socket.socket, to)

    def _make_inside(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        return self._inside.call(socket.socket, family, kind)

    def _apply_rules(self) -> None:
        cards = self._all()
        present = {card.tap for card in cards}
        sets = {
            card.named_set(name, version)
            for card in cards
            for name in card.names
            for version in (4, 6)
        }
        stale, stale_sets = self._applied - present, self._applied_sets - sets
        bridge = rules.bridge_rules(self._plan, cards, sorted(stale))
        routing = rules.routing_rules(
            self._plan, cards, sorted(stale), sorted(stale_sets), self._own
        )
        self._inside.call(nft.apply, bridge)
        self._inside.call(nft.apply, routing)
        self._applied, self._applied_sets = present, sets

    def _tell(self) -> None:
        """Store the cards, and tell dnsmasq."""
        cards = [
            stored.HeldCard(held.card.number, held.card.plan, held.ports)
            for held in self._cards.values()
        ]
        new = Path(f"{CARDS}.new")
        new.write_bytes(stored.held_cards().dump_json(cards))
        new.rename(CARDS)
        if self._services is not None:
            self._services.update(self._all())

    def _stored(self) -> list[stored.HeldCard]:
        try:
            return stored.held_cards().validate_json(Path(CARDS).read_bytes())
        except (OSError, ValueError):
            return []

    def _ensure_anchor(self) -> bool:
        """Have the process that has the namespace; return whether it was started."""
        if self._members.alive(ANCHOR):
            return False
        self._inside.call(self._start_anchor)
        return True

    def _start_anchor(self) -> None:
        with self._members.command(ANCHOR, ["sleep", "infinity"]) as (command, registration):
            subprocess.Popen(
                command,
                stdin=registration,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env={"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath)},
            )

    def _watch_rules(self, changes: socket.socket) -> None:
        """Look soon after another process has removed rules."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                data = changes.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                # Messages were lost.
                data = b""
            if (not data or _deletes(data)) and self._looking is None:
                self._looking = loop.call_later(_SETTLE, self._look)

        loop.add_reader(changes, read)

    def _watch_addresses(self, changes: socket.socket) -> None:
        """Close addresses that the host gets."""

        def read() -> None:
            with contextlib.suppress(OSError):
                changes.recv(1 << 16)
            with contextlib.suppress(CerneError):
                self._close_host()

        asyncio.get_running_loop().add_reader(changes, read)

    def _close_host(self) -> None:
        own = self._host.call(_addresses)
        if own != self._own:
            self._own = own
            self._apply_rules()

    def _look(self) -> None:
        self._looking = None
        with contextlib.suppress(CerneError):
            self._mend()

    def _look_regularly(self) -> None:
        self._look()
        if self._services is not None and self._services.ask_host():
            with contextlib.suppress(CerneError):
                self._services.update(self._all())
        asyncio.get_running_loop().call_later(_LOOK_AGAIN, self._look_regularly)


def _leading(held: _Held, port: PublishedPort) -> Callable[[], Address | None]:
    return lambda: held.target(port)


def _always(address: Address) -> Callable[[], Address]:
    return lambda: address


def _bound_as_before(
    port: PublishedPort, before: Iterable[PublishedPort]
) -> tuple[PublishedPort, socket.socket]:
    for former in before if port.host_port == 0 else ():
        if replace(former, host_port=0) == port:
            with contextlib.suppress(CerneError):
                return _bind(former)
    return _bind(port)


def _bind(port: PublishedPort) -> tuple[PublishedPort, socket.socket]:
    try:
        listener = bound(socket.socket, port.protocol, Address(port.host_address, port.host_port))
    except OSError as error:
        raise refusal(port, error) from error
    number: int = listener.getsockname()[1]
    published = PublishedPort(port.host_address, number, port.guest_port, port.protocol)
    return published, listener


def _make_bridge(plan: NetworkPlan) -> None:
    """Make the bridge and its addresses, or find them."""
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"):
        set_sysctl(f"bridge/{name}", "0")
    routed = plan.uplink in (Uplink.USER, Uplink.NAT)
    set_sysctl("ipv4/ip_forward", str(int(routed)))
    set_sysctl("ipv6/conf/all/forwarding", str(int(routed)))
    with Links() as links:
        links.up("lo")
        links.deliver_marked(rules.CLIENT_MARK)
        if links.index(BRIDGE) is None:
            links.add_bridge(BRIDGE, _bridge_mac(plan.id))
        links.up(BRIDGE, mtu=plan.mtu)
        if plan.ipv4 is not None and plan.gateway4 is not None:
            links.add_address(BRIDGE, IPv4Interface((plan.gateway4, plan.ipv4.prefixlen)))
        if plan.ipv6 is not None and plan.gateway6 is not None:
            links.add_address(BRIDGE, _ROUTER)
            links.add_address(BRIDGE, IPv6Interface((plan.gateway6, plan.ipv6.prefixlen)))


def _bridge_mac(network_id: str) -> str:
    digest = hashlib.sha256(f"{network_id}/bridge".encode()).digest()
    return bytes([0x02, *digest[:5]]).hex(":")


def _lost_bridge(plan: NetworkPlan) -> bool:
    with Links() as links:
        gateways = [address for address in (plan.gateway4, plan.gateway6) if address is not None]
        return links.index(BRIDGE) is None or not all(
            links.has_address(BRIDGE, address) for address in gateways
        )


def _lost_rules() -> bool:
    return not (
        nft.has_chain("bridge", rules.TABLE, "prerouting")
        and nft.has_chain("inet", rules.TABLE, "forward")
    )


def _make_card(card: Card, mtu: int) -> int:
    """Make a card's tap, as a port of the bridge; return its descriptor."""
    descriptor = make_tap(card.tap)
    try:
        set_sysctl(f"ipv6/conf/{card.tap}/disable_ipv6", "1")
        _connect_tap(card, mtu)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _connect_tap(card: Card, mtu: int | None = None) -> None:
    with Links() as links:
        links.join(card.tap, BRIDGE)
        links.guard_port(card.tap, card.plan.mac)
        links.set_rate(card.tap, card.plan.rate.receive)
        links.up(card.tap, mtu=mtu)


def _join_taps(cards: Iterable[Card]) -> None:
    present = _link_names()
    for card in cards:
        if card.tap in present:
            _connect_tap(card)


def _set_rate(card: Card) -> None:
    with Links() as links:
        links.set_rate(card.tap, card.plan.rate.receive)


def _remove_link(name: str) -> None:
    with Links() as links:
        links.remove(name)


def _has_link(name: str) -> bool:
    with Links() as links:
        return links.index(name) is not None


def _link_names() -> set[str]:
    with Links() as links:
        return links.names()


def _rule_changes() -> socket.socket:
    """A socket that tells of changes of rules in this thread's namespace."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
    made.setblocking(False)
    made.bind((0, _RULES_GROUP))
    return made


def _address_changes() -> socket.socket:
    """A socket that tells of changes of addresses in this thread's namespace."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    made.setblocking(False)
    made.bind((0, _ADDRESS_GROUPS))
    return made


def _addresses() -> set[rules.HostAddress]:
    with Links() as links:
        return links.addresses()


def _deletes(data: bytes) -> bool:
    """Whether messages of nf_tables tell that something was removed."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if kind >> 8 == _TABLES and kind & 0xFF in _DELETIONS:
            return True
        data = data[max(length + 3 & ~3, _HEADER.size) :]
    return False
