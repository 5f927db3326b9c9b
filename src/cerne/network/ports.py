"""Published ports: how they are written, and whether this host can give them."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from cerne.errors import CerneError, ConflictError, HostError, InputError

_PUBLISH = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<host>[0-9]+):(?P<guest>[0-9]+)"
    r"(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)
_HINT = "write it as 8080:80, 127.0.0.1:8080:80 or 5353:53/udp; ports are 1 to 65535"


class Protocols(StrEnum):
    """Transport protocols of a published port."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the host that leads to a port of the guest."""

    host_address: str
    """An IPv4 or IPv6 address, in numbers."""
    host_port: int
    guest_port: int
    protocol: Protocols = Protocols.TCP

    def __str__(self) -> str:
        return f"{_bracketed(self.host_address)}:{self.host_port}/{self.protocol}"


def parse_publish(text: str) -> PublishedPort:
    """The port that ``[ADDRESS:]HOST:GUEST[/tcp|/udp]`` names.

    ADDRESS is in numbers, IPv6 in brackets; without it the port is open to this host alone.

    Raises:
        InputError: it is written otherwise, or a port is not 1 to 65535.
    """
    match = _PUBLISH.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a published port", hint=_HINT)
    address = (match["address"] or "127.0.0.1").strip("[]")
    if _family(address) is None:
        raise InputError(f"{text!r}: {address} is not an address", hint=_HINT)
    host, guest = (_port(text, match[part]) for part in ("host", "guest"))
    return PublishedPort(address, host, guest, Protocols(match["protocol"] or "tcp"))


def require_free(ports: Iterable[PublishedPort]) -> None:
    """Refuse ports that cannot be bound on this host now.

    Raises:
        ConflictError: another process has the port.
        HostError: this user may not have the port.
        InputError: the address is not one of this host's.
    """
    for port in ports:
        _require_free(port)


def _require_free(port: PublishedPort) -> None:
    tcp = port.protocol is Protocols.TCP
    family = _family(port.host_address)
    if family is None:
        raise InputError(f"{port.host_address} is not an address", hint=_HINT)
    try:
        with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as probe:
            # As the VM's process will bind it: a connection that lingers from before is no
            # obstacle. With UDP the same option would let two processes share the port.
            if tcp:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((port.host_address, port.host_port))
            # With SO_REUSEADDR a port that others have bound is refused no sooner than here.
            if tcp:
                probe.listen(1)
    except OSError as error:
        raise _refusal(port, error) from error


def _refusal(port: PublishedPort, error: OSError) -> CerneError:
    match error.errno:
        case errno.EADDRINUSE:
            return ConflictError(
                f"port {port} of this host is in use",
                hint=f"publish another, or see who has it: ss -lnp 'sport = :{port.host_port}'",
            )
        case errno.EACCES:
            return HostError(
                f"port {port} of this host is reserved for root",
                hint=f"sudo sysctl net.ipv4.ip_unprivileged_port_start={port.host_port}",
            )
        case errno.EADDRNOTAVAIL:
            return InputError(
                f"{port.host_address} is not an address of this host", hint="see: ip address"
            )
        case _:
            return HostError(f"port {port} of this host cannot be had: {error.strerror}")


def _port(text: str, digits: str) -> int:
    # Five digits are looked at before they become a number, which could be of any length.
    if len(digits) > 5 or not 1 <= int(digits) <= 65535:
        raise InputError(f"{text!r}: {digits[:20]} is not a port", hint=_HINT)
    return int(digits)


def _family(address: str) -> socket.AddressFamily | None:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except OSError:
            continue
        return family
    return None


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
