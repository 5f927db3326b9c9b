"""What a network and its cards must be, and what they are: values, as JSON where they are stored.

The manager makes the plans; `cerne.network.network` makes a network of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from cerne.host.process import ProcessIdentity
from cerne.spec.egress import Allowed
from cerne.spec.network import Uplink
from cerne.spec.ports import PublishedPort
from cerne.spec.resources import NetworkResources


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """A network: a network namespace with a bridge in it, and a way out."""

    id: str
    name: str
    uplink: Uplink
    directory: Path
    """Its runtime directory, of this network alone: sockets, leases, logs. It may be missing."""
    ipv4: IPv4Network | None = None
    """None on the uplink ``bridge``, whose machines get addresses from the parent's network."""
    gateway4: IPv4Address | None = None
    """The network's own address, which serves DHCP and DNS."""
    ipv6: IPv6Network | None = None
    gateway6: IPv6Address | None = None
    domain: str = "internal"
    """Machines' names are resolved with it and without."""
    parent: str = ""
    """The bridge or interface of the host, on the uplink ``bridge``."""
    vlan: int | None = None
    force: bool = False
    """Whether the parent may be the interface of the host's default route."""
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class CardPlan:
    """A machine's card on a network; its MAC identifies it there."""

    mac: str
    machine: str
    """The machine's id."""
    name: str
    """The machine's name, which is its host name in DHCP and DNS."""
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    ports: tuple[PublishedPort, ...] = ()
    """Ports of the host that lead to it. A host port 0 takes a free one; see `CardState`."""
    egress: tuple[Allowed, ...] | None = None
    """What it may reach outside of the network; None for everything, empty for nothing."""
    host_ports: tuple[int, ...] = ()
    """TCP ports of the host's loopback that it reaches at the gateway's addresses."""
    rate: NetworkResources = field(default_factory=NetworkResources)
    """Bytes a second that the machine receives and sends at most."""
    keeps_clients: bool = False
    """Whether clients of its ports keep their addresses, because its default route leads here."""


@dataclass(frozen=True, slots=True)
class NetworkRecord:
    """What finds a running network again: its holder's process."""

    holder: ProcessIdentity
    directory: Path


@dataclass(frozen=True, slots=True)
class CardState:
    """A card as the network has it."""

    plan: CardPlan
    tap: str
    """The tap's name in the namespace."""
    ports: tuple[PublishedPort, ...]
    """The ports that are published, with the chosen number for each 0."""
    connected: bool
    """Whether a machine has the tap open."""


@dataclass(frozen=True, slots=True)
class NetworkState:
    """A network as it is."""

    cards: tuple[CardState, ...]
    processes: dict[str, int]
    """The pid of each of its processes, by name: ``holder``, ``dnsmasq``, ``pasta``."""
    faults: tuple[str, ...]
    """What is wrong, as sentences; `Network.repair` fixes it."""
    notes: tuple[str, ...]
    """What does not work on this host, as sentences, with the command that changes it."""
    interfaces: tuple[str, ...] = ()
    """Interfaces of the host that belong to the network."""
