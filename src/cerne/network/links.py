"""Interfaces, addresses, routes and rates of one network namespace, by netlink (rtnetlink(7)).

Each object speaks to the namespace of the thread that made it.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path
from types import TracebackType
from typing import Self

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from cerne.errors import HostError

_NO_DAD = 0x02
_MASTER = 0x04
_STATIC = 0x40
"""NUD_NOARP: the address of another port. With NUD_PERMANENT it would be the bridge's own."""
_TABLE_MAIN, _TABLE_MARKED = 254, 100
_BEFORE_MAIN = 100
_ROOT = 0xFFFF_FFFF
"""TC_H_ROOT."""
_BURST_TIME = 10
"""A full bucket is what the rate gives in a tenth of a second."""
_LEAST_BURST = 1 << 16
_LATENCY = "100ms"
_SYSCTL = Path("/proc/sys/net")


class Links:
    """The interfaces of this thread's network namespace; a context manager."""

    def __init__(self) -> None:
        self._route = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._route.close()

    def names(self) -> set[str]:
        """The names of all interfaces."""
        return {str(link.get_attr("IFLA_IFNAME")) for link in self._route.get_links()}

    def index(self, name: str) -> int | None:
        """The number of an interface; None if there is none."""
        found: list[int] = list(self._route.link_lookup(ifname=name))
        return found[0] if found else None

    def kind(self, name: str) -> str:
        """The kind of an interface, such as ``bridge``; empty for a device."""
        index = self._required(name)
        link = self._route.get_links(index)[0]
        information = link.get_attr("IFLA_LINKINFO")
        return str(information.get_attr("IFLA_INFO_KIND")) if information else ""

    def add_bridge(self, name: str, mac: str) -> None:
        """Make a bridge that sends multicast to all ports, and has no address of its own."""
        with _refused(f"making the bridge {name}", "sudo modprobe bridge"):
            self._route.link(
                "add",
                ifname=name,
                kind="bridge",
                address=mac,
                br_mcast_snooping=0,
                br_stp_state=0,
                br_forward_delay=0,
            )
        self.without_own_address(name)

    def add_pair(self, name: str, peer: str, namespace: int) -> None:
        """Make a pair of interfaces (veth(4)), of which `peer` is in another namespace."""
        with _refused(f"making the interface {name}", "sudo modprobe veth"):
            peer_options = {"ifname": peer, "net_ns_fd": namespace}
            self._route.link("add", ifname=name, kind="veth", peer=peer_options)

    def add_macvlan(self, parent: str, name: str, namespace: int) -> None:
        """Make an interface in another namespace that has all frames of one of this namespace."""
        link = self._required(parent)
        with _refused(f"making an interface on {parent}", "sudo modprobe macvlan"):
            self._route.link(
                "add",
                ifname=name,
                kind="macvlan",
                link=link,
                macvlan_mode="passthru",
                net_ns_fd=namespace,
            )

    def add_vlan(self, parent: str, name: str, number: int) -> None:
        """Make the interface of a VLAN of another interface."""
        link = self._required(parent)
        with _refused(f"making VLAN {number} on {parent}", "sudo modprobe 8021q"):
            self._route.link("add", ifname=name, kind="vlan", link=link, vlan_id=number)

    def remove(self, name: str) -> None:
        """Remove an interface, if it is there."""
        index = self.index(name)
        if index is not None:
            with contextlib.suppress(NetlinkError):
                self._route.link("del", index=index)

    def up(self, name: str, *, mtu: int | None = None) -> None:
        """Switch an interface on."""
        index = self._required(name)
        with _refused(f"switching {name} on"):
            if mtu is not None:
                self._route.link("set", index=index, mtu=mtu)
            self._route.link("set", index=index, state="up")

    def join(self, name: str, bridge: str) -> None:
        """Make an interface a port of a bridge."""
        master = self._required(bridge)
        with _refused(f"adding {name} to {bridge}"):
            self._route.link("set", index=self._required(name), master=master)

    def guard_port(self, name: str, mac: str) -> None:
        """Have a port of a bridge for one MAC: the bridge learns none from it."""
        index = self._required(name)
        with _refused(f"guarding the port {name}"):
            self._route.brport(
                "set", index=index, guard=1, learning=0, unicast_flood=0, mcast_router=0
            )
            self._route.fdb("replace", ifindex=index, lladdr=mac, flags=_MASTER, state=_STATIC)

    def add_address(self, name: str, address: IPv4Interface | IPv6Interface) -> None:
        """Give an interface an address, or find that it has it."""
        options = {"flags": _NO_DAD} if address.version == 6 else {}
        with _refused(f"giving {name} the address {address}"):
            self._route.addr(
                "replace",
                index=self._required(name),
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **options,
            )

    def has_address(self, name: str, address: IPv4Address | IPv6Address) -> bool:
        """Whether an interface has an address."""
        index = self.index(name)
        return index is not None and any(
            found.get_attr("IFA_ADDRESS") == str(address)
            for found in self._route.get_addr(index=index)
        )

    def addresses(self) -> set[IPv4Address | IPv6Address]:
        """The addresses of all interfaces."""
        texts = (
            str(found.get_attr("IFA_LOCAL") or found.get_attr("IFA_ADDRESS"))
            for found in self._route.get_addr()
        )
        return {ip_address(text) for text in texts}

    def deliver_marked(self, mark: int) -> None:
        """Have packets with this mark delivered here, to any address (ip-rule(8))."""
        for family, everything in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
            if family == socket.AF_INET6 and not has_ipv6():
                continue
            with _refused("routing answers of machines"):
                self._route.route(
                    "replace",
                    family=family,
                    type="local",
                    scope="host" if family == socket.AF_INET else "universe",
                    dst=everything,
                    oif=self._required("lo"),
                    table=_TABLE_MARKED,
                )
                marks = {
                    rule.get_attr("FRA_FWMARK") for rule in self._route.get_rules(family=family)
                }
                if mark not in marks:
                    rule = {"priority": _BEFORE_MAIN, "fwmark": mark, "table": _TABLE_MARKED}
                    self._route.rule("add", family=family, **rule)

    def set_default_route(self, name: str, gateway: IPv4Address | IPv6Address) -> None:
        """Have a default route by a gateway."""
        family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
        with _refused(f"making a default route by {gateway}"):
            self._route.route(
                "replace",
                family=family,
                dst="default" if gateway.version == 4 else "::/0",
                gateway=str(gateway),
                oif=self._required(name),
            )

    def set_rate(self, name: str, rate: int | None) -> None:
        """Limit what an interface sends to bytes a second (tc-tbf(8)); None for no limit."""
        index = self._required(name)
        if rate is None:
            with contextlib.suppress(NetlinkError):
                self._route.tc("del", index=index, parent=_ROOT)
            return
        burst = max(rate // _BURST_TIME, _LEAST_BURST)
        with _refused(f"limiting {name}", "sudo modprobe sch_tbf"):
            self._route.tc("replace", "tbf", index, rate=rate, burst=burst, latency=_LATENCY)

    def routes(self) -> Iterator[tuple[IPv4Network | IPv6Network, str]]:
        """The routes of the main table but default routes, and the interface of each."""
        for network, interface, _ in self._routes():
            if network.prefixlen:
                yield network, interface

    def default_interfaces(self) -> set[str]:
        """The interfaces of default routes."""
        return {interface for network, interface, _ in self._routes() if not network.prefixlen}

    def default_versions(self) -> tuple[bool, bool]:
        """Whether there is a default route by IPv4, and one by IPv6."""
        versions = {network.version for network, _, _ in self._routes() if not network.prefixlen}
        return 4 in versions, 6 in versions

    def _routes(self) -> Iterator[tuple[IPv4Network | IPv6Network, str, int]]:
        names = {
            int(link["index"]): str(link.get_attr("IFLA_IFNAME"))
            for link in self._route.get_links()
        }
        for family, everything in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for route in self._route.get_routes(family=family):
                table = route.get_attr("RTA_TABLE") or route["table"]
                output = route.get_attr("RTA_OIF")
                if table != _TABLE_MAIN or (output is None and not route["dst_len"]):
                    continue
                target = f"{route.get_attr('RTA_DST') or everything}/{route['dst_len']}"
                yield ip_network(target), names.get(output or 0, ""), int(route["dst_len"])

    def without_own_address(self, name: str) -> None:
        """Have no IPv6 address that the kernel makes of a MAC."""
        with contextlib.suppress(OSError):
            (_SYSCTL / "ipv6/conf" / name / "addr_gen_mode").write_text("1")

    def _required(self, name: str) -> int:
        index = self.index(name)
        if index is None:
            raise HostError(f"there is no interface {name}", hint="see: ip link")
        return index


def set_sysctl(name: str, value: str) -> bool:
    """Set a value below net/ in this thread's namespace; return False if the host has none."""
    try:
        (_SYSCTL / name).write_text(value)
    except OSError:
        return False
    return True


def has_ipv6() -> bool:
    """Whether this host's kernel has IPv6, which ``ipv6.disable=1`` at its start takes away."""
    return (_SYSCTL / "ipv6/conf").exists()


def read_sysctl(name: str) -> str:
    """A value below net/ in this thread's namespace; empty if the host has none."""
    try:
        return (_SYSCTL / name).read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def _refused(doing: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        lacking = error.code in (errno.EOPNOTSUPP, errno.ENOENT, errno.ENODEV)
        reason = error.args[1] if len(error.args) > 1 else error.code
        raise HostError(f"{doing} failed: {reason}", hint=hint if lacking else "") from error
