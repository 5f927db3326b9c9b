"""User-mode networking by passt: one process per network card opens the guest's connections.

passt(1), 2023-03 and later. It gives the addresses of `cerne.network.user`, drops to an
unprivileged user and ends when the card's socket closes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cerne.errors import HostError, InputError
from cerne.host.programs import find_program
from cerne.network.user import (
    ADDRESS,
    GATEWAY,
    GATEWAY6,
    GATEWAY_MAC,
    MTU,
    NAME_SERVER,
    address6,
)
from cerne.spec.ports import Protocols, PublishedPort

PASST = "passt"
"""The program."""

_NETMASK_BITS = "24"
_PROC = Path("/proc/net")
_LOOPBACK = "lo"
_LINK_LOCAL = "20"
_NO_PREFIX = "00"
_REJECTING = 0x200


def has_passt() -> bool:
    """Whether this host has passt."""
    return find_program(PASST) is not None


def require_ipv6(ports: Iterable[PublishedPort], proc: Path = _PROC) -> None:
    """Refuse ports at IPv6 addresses on a host without IPv6.

    Raises:
        HostError: no interface of this host has an IPv6 address.
    """
    for port in ports:
        if ":" in port.host_address and ipv6_interface(proc, anyway=True) is None:
            raise HostError(
                f"the port {port} needs IPv6, and no interface of this host has an IPv6 address",
                hint=f"publish it at an IPv4 address: 127.0.0.1:{port.host_port}:{port.guest_port}",
            )


def require_one_address(ports: Iterable[PublishedPort]) -> None:
    """Refuse the same port of the host at several addresses, which passt (2023-03) does not serve.

    Raises:
        InputError: a port is published at two addresses.
    """
    seen: dict[tuple[int, Protocols], PublishedPort] = {}
    for port in ports:
        former = seen.setdefault((port.host_port, port.protocol), port)
        if former is not port and port.host_port:
            raise InputError(
                f"{former} and {port} are one port at two addresses, of which passt serves one",
                hint="publish another port at the second address",
            )


def passt_command(
    binary: Path,
    link: str,
    ready: str,
    mac: str,
    ports: Iterable[PublishedPort] = (),
    *,
    maps_host: bool = False,
    proc: Path = _PROC,
) -> list[str]:
    """The arguments that start passt on a connected stream socket, with these ports published.

    `link` is the number of the socket's descriptor; `ready` is the number of a pipe's descriptor,
    to which passt writes its pid when it is ready. `mac` is the card's address. With `maps_host`
    the gateway's address leads to the host's loopback: what serves the socket has to say what the
    guest may reach there (`cerne.network.guest_frames`).
    """
    published = list(ports)
    command = [str(binary), "--foreground", "--quiet", "--stderr", "--fd", link]
    command += ["--pid", f"/proc/self/fd/{ready}"]
    command += ["--mac-addr", GATEWAY_MAC, "--mtu", str(MTU), "--dns", NAME_SERVER]
    command += ["--address", ADDRESS, "--netmask", _NETMASK_BITS, "--gateway", GATEWAY]
    interface = ipv6_interface(proc, anyway=any(":" in port.host_address for port in published))
    if interface is None:
        command += ["--ipv4-only"]
    else:
        command += ["--address", address6(mac), "--gateway", GATEWAY6]
    # Without this it looks for a default route, and does not start if there is none.
    command += ["--interface", interface or _LOOPBACK]
    if not maps_host:
        command += ["--no-map-gw"]
    for port in published:
        option = "--tcp-ports" if port.protocol is Protocols.TCP else "--udp-ports"
        command += [option, f"{port.host_address}/{port.host_port}:{port.guest_port}"]
    return command


def ipv6_interface(proc: Path = _PROC, *, anyway: bool = False) -> str | None:
    """An interface with which passt offers IPv6: that of the host's default route.

    passt takes one that has a link-local address. None if this host has no way out by IPv6; any
    other interface serves for published ports, `anyway`.
    """
    able = [
        words[5]
        for words in _table(proc / "if_inet6")
        if len(words) == 6 and words[3] == _LINK_LOCAL and words[5] != _LOOPBACK
    ]
    ways_out = [
        words[9]
        for words in _table(proc / "ipv6_route")
        if len(words) == 10 and words[1] == _NO_PREFIX and not int(words[8], 16) & _REJECTING
    ]
    found = [interface for interface in ways_out if interface in able]
    return next(iter([*found, *(able if anyway else [])]), None)


def _table(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return []
