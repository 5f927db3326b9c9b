"""Published ports: how they are written, and whether this host can give them."""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from cerne.errors import CerneError, ConflictError, HostError, InputError

_PUBLISH = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<host>[0-9]+):(?P<guest>[0-9]+)"
    r"(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)
_HINT = (
    "write it as 8080:80, 127.0.0.1:8080:80 or 5353:53/udp; ports are 1 to 65535, and 0:80 takes"
    " any free port of this host"
)
_USUAL_ADDRESS = "127.0.0.1"
_LAST = 65535


class Protocols(StrEnum):
    """Transport protocols of a published port."""

    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port of the host that leads to a port of the guest."""

    host_address: str
    """An IPv4 address, in numbers."""
    host_port: int
    """0 for any free port, which is chosen when the machine starts."""
    guest_port: int
    protocol: Protocols = Protocols.TCP

    def __str__(self) -> str:
        return f"{_bracketed(self.host_address)}:{self.host_port}/{self.protocol}"

    @property
    def short(self) -> str:
        """As people read it: what is usual is left out."""
        address = "" if self.host_address == _USUAL_ADDRESS else f"{self.host_address}:"
        protocol = "" if self.protocol is Protocols.TCP else f"/{self.protocol}"
        return f"{address}{self.host_port}->{self.guest_port}{protocol}"


def parse_publish(text: str) -> PublishedPort:
    """The port that ``[ADDRESS:]HOST:GUEST[/tcp|/udp]`` names.

    ADDRESS is in numbers; without it the port is open to this host alone. HOST may be 0.

    Raises:
        InputError: it is written otherwise, a port is not 1 to 65535, or the address is IPv6.
    """
    match = _PUBLISH.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a published port", hint=_HINT)
    address = (match["address"] or _USUAL_ADDRESS).strip("[]")
    if _family(address) is None:
        raise InputError(f"{text!r}: {address} is not an address", hint=_HINT)
    host, guest = _port(text, match["host"], least=0), _port(text, match["guest"], least=1)
    port = PublishedPort(address, host, guest, Protocols(match["protocol"] or "tcp"))
    check_port(port)
    return port


def check_port(port: PublishedPort) -> None:
    """Refuse a port that no host can publish to a guest.

    Raises:
        InputError: a number or the address is wrong, or the address is IPv6.
    """
    for number, least in ((port.host_port, 0), (port.guest_port, 1)):
        if not least <= number <= _LAST:
            raise InputError(f"{number} is not a port", hint=_HINT)
    match _family(port.host_address):
        case None:
            raise InputError(f"{port.host_address} is not an address", hint=_HINT)
        case socket.AF_INET6:
            protocol = "" if port.protocol is Protocols.TCP else f"/{port.protocol}"
            usual = "0.0.0.0" if port.host_address == "::" else _USUAL_ADDRESS
            instead = f"{usual}:{port.host_port}:{port.guest_port}{protocol}"
            raise InputError(
                f"port {port} cannot be published: guests have IPv4 addresses alone",
                hint=f"publish it at an IPv4 address: {instead}",
            )


def require_free(ports: Iterable[PublishedPort]) -> None:
    """Refuse ports that cannot be bound on this host now.

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

    One of TCP is nobody else's in this block, and the process that serves it can bind it meanwhile.
    One of UDP is free now, and can be taken by another before that process binds it.

    Raises:
        HostError, InputError: there is none, or the address is not one of this host's.
    """
    with contextlib.ExitStack() as bound:
        yield tuple(port if port.host_port else _free(port, bound) for port in ports)


def _free(port: PublishedPort, bound: contextlib.ExitStack) -> PublishedPort:
    check_port(port)
    try:
        holder = bound.enter_context(_socket(port))
        # With this a process may listen at a port that another has bound alone; QEMU does not ask
        # for it with UDP.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((port.host_address, 0))
        number: int = holder.getsockname()[1]
        if port.protocol is Protocols.UDP:
            holder.close()
    except OSError as error:
        raise _refusal(port, error) from error
    return replace(port, host_port=number)


def _socket(port: PublishedPort) -> socket.socket:
    kind = socket.SOCK_STREAM if port.protocol is Protocols.TCP else socket.SOCK_DGRAM
    return socket.socket(socket.AF_INET, kind)


def _require_free(port: PublishedPort) -> None:
    tcp = port.protocol is Protocols.TCP
    try:
        with _socket(port) as probe:
            # As the VM's process will bind it: a connection that lingers from before is no
            # obstacle. With UDP the same option would let two processes share the port.
            if tcp:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((port.host_address, port.host_port))
            # With SO_REUSEADDR a port that others have bound is refused no sooner than here.
            if tcp and port.host_port:
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
                f"{port.host_address} is not an address of this host",
                hint=f"publish port {port.host_port} at one that it has; see: ip -4 address",
            )
        case _:
            return HostError(f"port {port} of this host cannot be had: {error.strerror}")


def _port(text: str, digits: str, least: int) -> int:
    # Five digits are looked at before they become a number, which could be of any length.
    if len(digits) > 5 or not least <= int(digits) <= _LAST:
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
