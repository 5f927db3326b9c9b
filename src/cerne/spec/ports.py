"""Published ports, and their notation."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from enum import StrEnum

from cerne.errors import InputError

_PUBLISH = re.compile(
    r"(?:(?P<address>[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<host>[0-9]+):(?P<guest>[0-9]+)"
    r"(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)
_RANGE = re.compile(
    r"(?P<before>.*?)(?P<host>[0-9]{1,5})-(?P<last_host>[0-9]{1,5})"
    r":(?P<guest>[0-9]{1,5})-(?P<last_guest>[0-9]{1,5})(?P<after>/tcp|/udp)?",
    re.ASCII | re.DOTALL,
)
_LARGEST_RANGE = 256
_NAMED = re.compile(
    r"(?:(?P<address>[0-9.]+\.[0-9.]+|\[[0-9a-fA-F:.]+\]):)?(?P<host>[0-9]{1,5})"
    r"(?::(?P<guest>[0-9]{1,5}))?(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)
_NAMED_HINT = "write it as 8080, 127.0.0.1:8080 or 5353/udp"
_HINT = (
    "write it as 8080:80, 18500-18502:80-82, 127.0.0.1:8080:80, [::1]:8080:80 or 5353:53/udp;"
    " ports are 1 to 65535, and 0:80 takes any free port of this host"
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
    """An IPv4 or IPv6 address, in numbers."""
    host_port: int
    """0 for any free port, which Cerne chooses when the machine starts."""
    guest_port: int
    protocol: Protocols = Protocols.TCP

    def __str__(self) -> str:
        return f"{_bracketed(self.host_address)}:{self.host_port}/{self.protocol}"

    @property
    def short(self) -> str:
        """The port for people, without the usual address and protocol."""
        address = "" if self.host_address == _USUAL_ADDRESS else f"{_bracketed(self.host_address)}:"
        protocol = "" if self.protocol is Protocols.TCP else f"/{self.protocol}"
        return f"{address}{self.host_port}->{self.guest_port}{protocol}"


def parse_publish(text: str) -> PublishedPort:
    """Parse a port from ``[ADDRESS:]HOST:GUEST[/tcp|/udp]``.

    ADDRESS is numeric; without it the port is open only to this host. HOST may be 0.

    Raises:
        InputError: the notation is wrong, or a port is not 1 to 65535.
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


def parse_publishes(text: str) -> tuple[PublishedPort, ...]:
    """Parse a port, or a range of ports from ``[ADDRESS:]HOST-HOST:GUEST-GUEST[/tcp|/udp]``.

    Raises:
        InputError: as `parse_publish`, or the two ranges have not the same size.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        return (parse_publish(text),)
    first, last = int(match["host"]), int(match["last_host"])
    count = last - first + 1
    if count != int(match["last_guest"]) - int(match["guest"]) + 1:
        raise InputError(
            f"{text!r} has two ranges that are not of the same size",
            hint="write as many ports of the guest as of this host: 18500-18502:80-82",
        )
    if not first or not 1 <= count <= _LARGEST_RANGE:
        raise InputError(
            f"{text!r} is not a range of 1 to {_LARGEST_RANGE} ports",
            hint="write the first port before the last: 18500-18502:80-82",
        )
    guest, after = int(match["guest"]), match["after"] or ""
    return tuple(
        parse_publish(f"{match['before']}{first + each}:{guest + each}{after}")
        for each in range(count)
    )


def names_port(text: str, port: PublishedPort) -> bool:
    """Whether ``[ADDRESS:]HOST[:GUEST][/udp]`` names this port, as it is published.

    Without an address or a protocol it names the port of any.

    Raises:
        InputError: it is not such a text.
    """
    match = _NAMED.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} does not name a port of this host", hint=_NAMED_HINT)
    address, guest = (match["address"] or "").strip("[]"), match["guest"]
    return (
        int(match["host"]) == port.host_port
        and address in ("", port.host_address)
        and guest in (None, str(port.guest_port))
        and match["protocol"] in (None, port.protocol)
    )


def check_port(port: PublishedPort) -> None:
    """Refuse a port that no host can publish.

    Raises:
        InputError: a number or the address is wrong.
    """
    for number, least in ((port.host_port, 0), (port.guest_port, 1)):
        if not least <= number <= _LAST:
            raise InputError(f"{number} is not a port", hint=_HINT)
    if _family(port.host_address) is None:
        raise InputError(f"{port.host_address} is not an address", hint=_HINT)


def _port(text: str, digits: str, least: int) -> int:
    # The length is checked before the text becomes a number, because it may be very long.
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
