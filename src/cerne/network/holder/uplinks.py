"""The ways out of a network: ``user``, ``nat``, ``bridge`` and ``none``.

Each connects the interface `OUTSIDE` of the namespace to the host, and knows whether that is still
so.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from pathlib import Path

from cerne.errors import CapacityError, ConflictError, HostError, InputError
from cerne.host.members import Members
from cerne.host.programs import require_program
from cerne.network.firewall import PREFIX, forward_notes
from cerne.network.holder import nft
from cerne.network.holder.children import Child
from cerne.network.holder.namespace import Inside, Worker, privileged
from cerne.network.links import Links, has_ipv6, read_sysctl, set_sysctl
from cerne.network.plan import NetworkPlan
from cerne.network.rules import BRIDGE, OUTSIDE, TABLE, Json
from cerne.network.tap import TUN_DEVICE
from cerne.spec.network import Uplink

# Addresses of the link between pasta and the namespace: 192.0.0.0/29 is kept for such links
# (RFC 7335), so that no machine wants to reach another network there.
_PASTA4, _PASTA_GATEWAY4, _PASTA_BITS4 = "192.0.0.2", "192.0.0.1", "29"
_PASTA6, _PASTA_GATEWAY6 = "fd63:6572:6e65::2", "fe80::1"
_PAIR_POOL = IPv4Network("100.64.0.0/10")
"""Where the links of pairs are picked (RFC 6598)."""
_TRIES = 64
_EVERYONE = stat.S_IROTH | stat.S_IWOTH


class NoUplink:
    """A closed network."""

    interfaces: tuple[str, ...] = ()

    def connect(self) -> None:
        """Connect it, or connect it again."""

    def connected(self) -> bool:
        """Whether it is connected."""
        return True

    def notes(self) -> Iterable[str]:
        """What does not work on this host."""
        return ()

    def processes(self) -> Mapping[str, int | None]:
        """Its processes; None for one that does not run."""
        return {}


class UserUplink(NoUplink):
    """Connects it by pasta(1), a process without privilege, which opens the connections."""

    def __init__(self, plan: NetworkPlan, inside: Inside, members: Members) -> None:
        self._plan = plan
        self._inside = inside
        self._host = Worker()
        self._pasta = Child(
            "pasta",
            members,
            self._command,
            descriptors=(inside.descriptor,),
            directory=Path("/"),
        )

    def connect(self) -> None:
        if self._pasta.pid is None:
            self._pasta.start()

    def connected(self) -> bool:
        return self._pasta.pid is not None

    def notes(self) -> Iterable[str]:
        if self._pasta.said:
            yield f"pasta said: {self._pasta.said}"

    def processes(self) -> Mapping[str, int | None]:
        return {"pasta": self._pasta.pid}

    def _command(self) -> list[str]:
        options = {"--address": _PASTA4, "--netmask": _PASTA_BITS4, "--gateway": _PASTA_GATEWAY4}
        command = [str(require_program("pasta")), "--foreground", "--quiet", "--config-net"]
        command += ["--ns-ifname", OUTSIDE, "--mtu", str(self._plan.mtu), "--no-map-gw"]
        for ports in ("--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"):
            command += [ports, "none"]
        four, six = self._host.call(_default_versions)
        if four:
            command += [word for option in options.items() for word in option]
        if six:
            command += ["--address", _PASTA6, "--gateway", _PASTA_GATEWAY6]
        if four != six:
            command.append("--ipv4-only" if four else "--ipv6-only")
        # The namespace is open in pasta: it may have no right to look at other processes.
        namespace = f"/proc/self/fd/{self._inside.descriptor}"
        command += ["--netns-only", "--netns", namespace]
        as_user = self._as_user()
        if not os.geteuid() and not as_user:
            # As any other user it may not open the device here. It gives up its capabilities.
            command += ["--runas", "0"]
        return [*as_user, *command]

    def _as_user(self) -> list[str]:
        """Have pasta run as a user without files, with what it needs to enter the namespace."""
        if os.geteuid() or TUN_DEVICE.stat().st_mode & _EVERYONE != _EVERYONE:
            return []
        kept = "-all,+sys_admin,+net_admin,+net_bind_service"
        return [
            str(require_program("setpriv")),
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--pdeathsig=KILL",
            f"--inh-caps={kept}",
            f"--ambient-caps={kept}",
            "--",
        ]


class _Pair(NoUplink):
    """An interface of the host whose other end is in the namespace."""

    def __init__(self, plan: NetworkPlan, inside: Inside) -> None:
        self._plan = plan
        self._inside = inside
        self._host = Worker()
        self._name = pair_name(plan.id)
        self.interfaces: tuple[str, ...] = (self._name,)
        if not privileged():
            raise HostError(
                f"the uplink {plan.uplink} needs root",
                hint="run cerne as root, or take another uplink: --uplink user",
            )

    def connect(self) -> None:
        # pyroute2 has an event loop of its own in each thread.
        self._host.call(self._connect)

    def connected(self) -> bool:
        return self._host.call(_has_link, self._name) and self._inside.call(_has_link, OUTSIDE)

    def _connect(self) -> None:
        raise NotImplementedError


class NatUplink(_Pair):
    """Has the host's kernel route it, and translate its addresses to the host's own.

    Of the host it changes three things: a pair of interfaces, forwarding on the interfaces of its
    routes, and chains of its own in the table ``inet cerne``. It never changes a rule of others.
    """

    def __init__(self, plan: NetworkPlan, inside: Inside) -> None:
        super().__init__(plan, inside)
        self._link4 = self._link6 = None
        self._guarded: frozenset[str] = frozenset()

    def _connect(self) -> None:
        with Links() as links:
            links.remove(self._name)
            four, six = _free_links(links)
            links.add_pair(self._name, OUTSIDE, self._inside.descriptor)
            links.without_own_address(self._name)
            links.add_address(self._name, IPv4Interface((four[1], four.prefixlen)))
            if has_ipv6():
                links.add_address(self._name, IPv6Interface((six[1], six.prefixlen)))
            links.up(self._name, mtu=self._plan.mtu)
            outward = {interface for _, interface in links.routes()} | links.default_interfaces()
        self._inside.call(_configure_pair, four, six, self._plan.mtu)
        self._forward(outward - {self._name, "lo", ""})
        nft.apply(_nat_rules(self._plan.id, self._name, four, six, self._guarded))

    def connected(self) -> bool:
        chain = nft.has_chain("inet", TABLE, _chain("forward", self._plan.id))
        forwards = read_sysctl(f"ipv4/conf/{self._name}/forwarding") == "1"
        return chain and forwards and super().connected()

    def notes(self) -> Iterable[str]:
        yield from forward_notes()
        if has_ipv6() and not _forwards6(self._name):
            yield (
                "IPv6 does not leave this network, because the host does not forward IPv6:"
                " sudo sysctl net.ipv6.conf.all.forwarding=1"
                " net.ipv6.conf.INTERFACE.accept_ra=2"
            )

    def _forward(self, outward: Iterable[str]) -> None:
        """Forward between the pair and the interfaces of the host's routes."""
        guarded = set()
        for interface in outward:
            if read_sysctl(f"ipv4/conf/{interface}/forwarding") == "0":
                set_sysctl(f"ipv4/conf/{interface}/forwarding", "1")
                guarded.add(interface)
            set_sysctl(f"ipv6/conf/{interface}/force_forwarding", "1")
        set_sysctl(f"ipv4/conf/{self._name}/forwarding", "1")
        set_sysctl(f"ipv6/conf/{self._name}/force_forwarding", "1")
        self._guarded |= guarded


class BridgeUplink(_Pair):
    """Makes it a part of a network of the host, by a bridge or an interface of the host."""

    def _connect(self) -> None:
        plan = self._plan
        with Links() as links:
            _require_parent(links, plan)
            links.remove(self._name)
            if links.kind(plan.parent) == "bridge":
                links.add_pair(self._name, OUTSIDE, self._inside.descriptor)
                links.without_own_address(self._name)
                links.join(self._name, plan.parent)
                links.up(self._name)
            else:
                self.interfaces = ()
                links.add_macvlan(plan.parent, OUTSIDE, self._inside.descriptor)
                links.up(plan.parent)
        self._inside.call(_join_outside, plan.vlan)

    def connected(self) -> bool:
        if self.interfaces:
            return super().connected()
        return self._inside.call(_has_link, OUTSIDE)


def make_uplink(plan: NetworkPlan, inside: Inside, members: Members) -> NoUplink:
    """The uplink of a network; it is not connected yet.

    Raises:
        HostError: this user may not have it.
    """
    match plan.uplink:
        case Uplink.USER:
            return UserUplink(plan, inside, members)
        case Uplink.NAT:
            return NatUplink(plan, inside)
        case Uplink.BRIDGE:
            return BridgeUplink(plan, inside)
        case _:
            return NoUplink()


def pair_name(network_id: str) -> str:
    """The name of a network's interface on the host: 15 characters at most."""
    return f"{PREFIX}{network_id.replace('-', '')[:8]}"


def leave_host(network_id: str) -> None:
    """Remove what a network has on the host, if it is there: its interface and its chains."""
    with Links() as links:
        links.remove(pair_name(network_id))
    names = [_chain(kind, network_id) for kind in ("forward", "postrouting")]
    there = [chain["name"] for chain in nft.chains() if chain.get("table") == TABLE]
    present = [name for name in names if name in there]
    if not present:
        return
    commands: list[Json] = []
    for name in present:
        place = {"family": "inet", "table": TABLE, "name": name}
        commands += [{"flush": {"chain": place}}, {"delete": {"chain": place}}]
    if len(present) == len(there):
        commands.append({"delete": {"table": {"family": "inet", "name": TABLE}}})
    nft.apply({"nftables": commands})


def _chain(kind: str, network_id: str) -> str:
    return f"{kind}-{network_id.replace('-', '')[:8]}"


def _nat_rules(
    network_id: str,
    interface: str,
    four: IPv4Network,
    six: ipaddress.IPv6Network,
    guarded: Iterable[str],
) -> Json:
    """The rules of the host for one network, in chains of its own."""
    forward, postrouting = _chain("forward", network_id), _chain("postrouting", network_id)
    place = {"family": "inet", "table": TABLE}
    commands: list[Json] = [{"add": {"table": {"family": "inet", "name": TABLE}}}]
    for name, kind, hook, priority in (
        (forward, "filter", "forward", 0),
        (postrouting, "nat", "postrouting", 100),
    ):
        chain = {**place, "name": name}
        base = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        commands += [{"add": {"chain": {**chain, **base}}}, {"flush": {"chain": chain}}]

    def rule(chain: str, *expressions: Json) -> None:
        commands.append({"add": {"rule": {**place, "chain": chain, "expr": list(expressions)}}})

    def iface(key: str, name: object, operator: str = "==") -> Json:
        return {"match": {"op": operator, "left": {"meta": {"key": key}}, "right": name}}

    def state(name: str) -> Json:
        return {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": name}}

    drop: Json = {"drop": None}
    # Networks do not reach each other, and from outside comes what was asked for.
    rule(forward, iface("iifname", interface), iface("oifname", f"{PREFIX}*"), drop)
    rule(forward, iface("oifname", interface), state("new"), drop)
    rule(forward, iface("oifname", interface), state("invalid"), drop)
    if names := sorted(guarded):
        # The host forwarded nothing between these interfaces before, and still does not.
        both = [iface("iifname", {"set": names}), iface("oifname", {"set": names})]
        rule(forward, *both, state("new"), drop)
    for protocol, subnet in (("ip", four), ("ip6", six)):
        source = {"payload": {"protocol": protocol, "field": "saddr"}}
        prefix = {"addr": str(subnet.network_address), "len": subnet.prefixlen}
        matches: Json = {"match": {"op": "==", "left": source, "right": {"prefix": prefix}}}
        away = iface("oifname", interface, "!=")
        rule(postrouting, matches, away, {"masquerade": None})
    return {"nftables": commands}


def _free_links(links: Links) -> tuple[IPv4Network, ipaddress.IPv6Network]:
    """Subnets for a pair, which the host has no route to."""
    taken = [network for network, _ in links.routes()]
    for _ in range(_TRIES):
        number = secrets.randbelow(_PAIR_POOL.num_addresses // 4) * 4
        four = IPv4Network((int(_PAIR_POOL.network_address) + number, 30))
        if not any(network.version == 4 and four.overlaps(network) for network in taken):
            six = ipaddress.IPv6Network((0xFD << 120 | secrets.randbits(40) << 80, 126))
            return four, six
    raise CapacityError(f"{_PAIR_POOL} has no free subnet for the network's link to the host")


def _configure_pair(four: IPv4Network, six: ipaddress.IPv6Network, mtu: int) -> None:
    with Links() as links:
        links.add_address(OUTSIDE, IPv4Interface((four[2], four.prefixlen)))
        if has_ipv6():
            links.add_address(OUTSIDE, IPv6Interface((six[2], six.prefixlen)))
        links.up(OUTSIDE, mtu=mtu)
        links.set_default_route(OUTSIDE, IPv4Address(four[1]))
        if has_ipv6():
            links.set_default_route(OUTSIDE, IPv6Address(six[1]))


def _forwards6(interface: str) -> bool:
    forced = read_sysctl(f"ipv6/conf/{interface}/force_forwarding") == "1"
    return forced or read_sysctl("ipv6/conf/all/forwarding") == "1"


def _require_parent(links: Links, plan: NetworkPlan) -> None:
    """Refuse a parent that is missing, or that the host itself is reached by.

    Raises:
        InputError: there is no such interface.
        ConflictError: it has the host's default route.
    """
    if links.index(plan.parent) is None:
        raise InputError(f"this host has no interface {plan.parent}", hint="see: ip link")
    bridge = links.kind(plan.parent) == "bridge"
    if not bridge and not plan.force and plan.parent in links.default_interfaces():
        raise ConflictError(
            f"{plan.parent} has this host's default route: the network would take all its frames,"
            " and this host would not be reached by it any more",
            hint="make a bridge with it and name that bridge; or take it with --force",
        )


def _join_outside(vlan: int | None) -> None:
    with Links() as links:
        port = OUTSIDE
        links.without_own_address(OUTSIDE)
        links.up(OUTSIDE)
        if vlan is not None:
            port = f"{OUTSIDE}.{vlan}"
            links.add_vlan(OUTSIDE, port, vlan)
            links.without_own_address(port)
        links.join(port, BRIDGE)
        links.up(port)


def _has_link(name: str) -> bool:
    with Links() as links:
        return links.index(name) is not None


def _default_versions() -> tuple[bool, bool]:
    with Links() as links:
        return links.default_versions()
