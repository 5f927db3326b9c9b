"""User-mode networking by passt: one process per network card opens the guest's connections.

passt(1), 2023-03 and later. It gives the addresses of `cerne.network.user`, drops to an
unprivileged user and ends when the card's socket closes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cerne.network.user import ADDRESS, GATEWAY, NAME_SERVER
from cerne.spec.ports import Protocols, PublishedPort

_NETMASK_BITS = "24"
_ROUTES = Path("/proc/net/route")
_DEFAULT_ROUTE = "00000000"


def has_way_out(routes: Path = _ROUTES) -> bool:
    """Whether this host has a default route by IPv4, without which passt does not start."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return False
    return any(line.split()[1:2] == [_DEFAULT_ROUTE] for line in lines)


def passt_command(binary: Path, link: str, ready: str, ports: Iterable[PublishedPort]) -> list[str]:
    """The arguments that start passt on a connected stream socket, with these ports published.

    `link` is the number of the socket's descriptor; `ready` is the number of a pipe's descriptor,
    to which passt writes its pid when it is ready.
    """
    command = [str(binary), "--foreground", "--quiet", "--stderr", "--fd", link]
    command += ["--pid", f"/proc/self/fd/{ready}"]
    command += [
        "--ipv4-only",
        "--address",
        ADDRESS,
        "--netmask",
        _NETMASK_BITS,
        "--gateway",
        GATEWAY,
    ]
    command += ["--dns-forward", NAME_SERVER]
    for port in ports:
        option = "--tcp-ports" if port.protocol is Protocols.TCP else "--udp-ports"
        command += [option, f"{port.host_address}/{port.host_port}:{port.guest_port}"]
    return command
