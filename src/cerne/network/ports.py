"""Whether this host can give the ports that machines publish."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cerne.errors import CerneError, ConflictError, HostError, InputError
from cerne.spec.ports import Protocols, PublishedPort, check_port


def require_free(ports: Iterable[PublishedPort]) -> None:
    """Refuse ports that this host does not have free now.

    Raises:
        ConflictError: another process has the port.
        HostError: this user may not have the port.
        InputError: the address is not one of this host's.
    """
    for port in ports:
        check_port(port)
        _require_free(port)


@contextlib.contextmanager
def chosen(ports: Sequence[PublishedPort]) -> Iterator[tuple[PublishedPort, ...]]:
    """The same ports, with a free one for each 0.

    In this block no other process takes a TCP port, and the process that serves it can bind it. A
    UDP port is free now, but another process can take it before the serving process binds it.

    Raises:
        HostError, InputError: no port is free, or the address is not one of this host's.
    """
    with contextlib.ExitStack() as bound:
        yield tuple(port if port.host_port else _free(port, bound) for port in ports)


def _free(port: PublishedPort, bound: contextlib.ExitStack) -> PublishedPort:
    check_port(port)
    try:
        holder = bound.enter_context(_socket(port))
        # With this option a process may listen at a port that another has only bound; QEMU does not
        # set it for UDP.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((port.host_address, 0))
        number: int = holder.getsockname()[1]
        if port.protocol is Protocols.UDP:
            holder.close()
    except OSError as error:
        raise refusal(port, error) from error
    return replace(port, host_port=number)


def _socket(port: PublishedPort) -> socket.socket:
    kind = socket.SOCK_STREAM if port.protocol is Protocols.TCP else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in port.host_address else socket.AF_INET
    made = socket.socket(family, kind)
    if family == socket.AF_INET6:
        # The port at all IPv4 addresses is another one.
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _require_free(port: PublishedPort) -> None:
    tcp = port.protocol is Protocols.TCP
    try:
        with _socket(port) as probe:
            # The VM's process binds it the same way, so that a lingering connection is no obstacle.
            # For UDP the same option would let two processes share the port.
            if tcp:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((port.host_address, port.host_port))
            # With SO_REUSEADDR the kernel refuses a port that others have bound only here.
            if tcp and port.host_port:
                probe.listen(1)
    except OSError as error:
        raise refusal(port, error) from error


def refusal(port: PublishedPort, error: OSError) -> CerneError:
    """The error to raise if this host refuses a port."""
    match error.errno:
        case errno.EADDRINUSE:
            return ConflictError(
                f"port {port} of this host is in use",
                hint="publish another port, or see which process has this one: "
                f"ss -lnp 'sport = :{port.host_port}'",
            )
        case errno.EACCES:
            return HostError(
                f"port {port} of this host is reserved for root",
                hint=f"sudo sysctl net.ipv4.ip_unprivileged_port_start={port.host_port}",
            )
        case errno.EADDRNOTAVAIL:
            return InputError(
                f"{port.host_address} is not an address of this host",
                hint=f"publish port {port.host_port} at an address of this host: ip address",
            )
        case _:
            return HostError(f"this host refuses port {port}: {error.strerror}")
