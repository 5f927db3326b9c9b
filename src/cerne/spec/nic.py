"""The network cards of a machine: the first one, and those that are attached."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from cerne.errors import InputError
from cerne.spec.egress import Allowed, check_allowed, parse_allowed
from cerne.spec.network import NetworkKind, parse_network
from cerne.spec.part import Device, refusal_words, require_unique
from cerne.spec.ports import PublishedPort, check_port, parse_publish, parse_publishes
from cerne.spec.resources import NetworkResources, Rates

_MAC = re.compile("[0-9a-f]{2}(?::[0-9a-f]{2}){5}", re.ASCII)
_GROUP = 0b01
_OPTION = re.compile("(?P<name>address|mac|egress|rate)=(?P<value>[^,]+)", re.ASCII)
_OPTIONS = "write it as NAME:address=10.20.0.5,mac=02:00:00:00:00:05,rate=10M,egress=none"
_MOST_ALLOWED = 256
_NAMED_ONLY: dict[str, object] = {
    "address": None,
    "mac": None,
    "allow": (),
    "egress": "all",
    "rate": NetworkResources(),
}
"""The fields of a card that need a network with a name, and their values on other networks."""
_NOT_WRITTEN: dict[str, object] = {**_NAMED_ONLY, "host_access": ()}
"""Values that are not written: an older Cerne reads the specifications of machines without them."""
_LAST_PORT = 65535


def _port(value: object) -> object:
    if isinstance(value, int):
        raise InputError(
            f"{value} is not a published port: it does not name a port of the guest",
            hint=f"write '{value}:{value}', the port of this host before the guest's",
        )
    return parse_publish(value) if isinstance(value, str) else value


def _ports(value: object) -> object:
    """Each port of a range becomes a port of its own."""
    if not isinstance(value, list | tuple):
        return value
    single: list[object] = []
    for each in value:
        single += parse_publishes(each) if isinstance(each, str) else [each]
    return single


Port = Annotated[PublishedPort, BeforeValidator(_port)]
"""A published port, which may be a text: ``8080:80``."""

Ports = Annotated[tuple[Port, ...], BeforeValidator(_ports)]
"""Published ports, of which a text may be a range: ``18500-18502:80-82``."""

_PORTS: TypeAdapter[tuple[PublishedPort, ...]] = TypeAdapter(Ports)


def _allowed(value: object) -> object:
    return parse_allowed(value) if isinstance(value, str) else value


def _host_port(value: object) -> object:
    """A port of the host, as a number or a text."""
    port = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value) else value
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= _LAST_PORT:
        raise InputError(
            f"{value!r} is not a port of this host",
            hint=f"write a number from 1 to {_LAST_PORT}: --host-access 8000",
        )
    return port


def _mac(value: object) -> object:
    if not isinstance(value, str):
        return value
    mac = value.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(mac) or mac == "00:00:00:00:00:00" or int(mac[:2], 16) & _GROUP:
        raise InputError(
            f"{value!r} is not an address of a network card",
            hint="write six pairs of hexadecimal digits, such as 02:00:00:00:00:05",
        )
    return mac


def _address(value: object) -> object:
    """One IPv4 address, one IPv6 address, or both with a comma between."""
    if not isinstance(value, str):
        return value
    found: dict[int, str] = {}
    for text in value.split(","):
        address = _one_address(text.strip())
        if address is None or address.version in found:
            raise InputError(
                f"{value!r} is not an address for a network card",
                hint="write an IPv4 address, an IPv6 address, or both: 10.20.0.5,fd00:20::5",
            )
        found[address.version] = str(address)
    return ",".join(found[version] for version in sorted(found))


def _one_address(text: str) -> IPv4Address | IPv6Address | None:
    for family in (IPv4Address, IPv6Address):
        try:
            address = family(text)
        except ValueError:
            continue
        bad = address.is_multicast or address.is_loopback or address.is_unspecified
        return None if bad or getattr(address, "scope_id", None) else address
    return None


class Nic(Device):
    """A network card of a machine."""

    network: str = "user"
    """``user``, ``tap:INTERFACE``, or the name of a network."""
    ports: Ports = ()
    """Ports of the host that lead to ports of the guest."""
    address: Annotated[str | None, BeforeValidator(_address)] = None
    """Its addresses on a network with a name, an IPv4, an IPv6 or both; None for free ones."""
    mac: Annotated[str | None, BeforeValidator(_mac)] = None
    """Its hardware address on a network with a name; None for one that Cerne makes."""
    allow: tuple[Annotated[Allowed, BeforeValidator(_allowed)], ...] = ()
    """What it may reach outside of a network with a name; empty for everything."""
    host_access: tuple[Annotated[int, BeforeValidator(_host_port)], ...] = ()
    """Ports of the host's loopback that it reaches at its gateway."""
    egress: Literal["all", "none"] = "all"
    """``none`` if it may reach nothing outside of its network with a name."""
    rate: Annotated[NetworkResources, Rates] = NetworkResources()
    """Bytes a second on a network with a name at most."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Most fields are written only if they have another value than the usual one."""
        fields: dict[str, object] = write(self)
        return {
            name: value
            for name, value in fields.items()
            if name not in _NOT_WRITTEN or getattr(self, name) != _NOT_WRITTEN[name]
        }

    @classmethod
    def parse(cls, text: str, *, slot: int | None = None, **fields: object) -> Self:
        """Parse a card from ``user``, ``tap:INTERFACE`` or ``NAME[:OPTION=VALUE,...]``.

        Raises:
            InputError: there is no such network or option, or a value is not valid.
        """
        values = {**nic_fields(text), **fields, "slot": slot}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "extra_forbidden":
                raise InputError(f"a network card has no field {first['loc'][-1]}") from error
            hint = _OPTIONS if ":" in text else "see: cerne network connect --help"
            raise InputError(refusal_words(first), hint=hint) from error

    @property
    def address4(self) -> str | None:
        """The IPv4 address that was asked for."""
        return next((each for each in (self.address or "").split(",") if "." in each), None)

    @property
    def address6(self) -> str | None:
        """The IPv6 address that was asked for."""
        return next((each for each in (self.address or "").split(",") if ":" in each), None)

    @property
    def is_named(self) -> bool:
        """Whether its network is one with a name."""
        return parse_network(self.network).kind is NetworkKind.NAMED

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        kind = parse_network(self.network).kind
        _check_ports(self.ports)
        if self.ports and kind not in (NetworkKind.USER, NetworkKind.NAMED):
            tap = ": with a tap the guest has its own address" if kind is NetworkKind.TAP else ""
            raise InputError(
                f"a machine with the network {self.network!r} publishes no ports",
                hint=f"leave --publish out, or write --publish none to remove ports{tap}",
            )
        if self.ports and self.slot is not None and kind is NetworkKind.USER:
            raise InputError(
                "an attached network card publishes no ports",
                hint="publish them when the machine is made: cerne run --publish",
            )
        if kind is NetworkKind.NONE:
            raise InputError(
                f"{self.network!r} is not a network for a card",
                hint="write user, tap:INTERFACE, or the name of a network: cerne network ls",
            )
        if self.host_access and kind not in (NetworkKind.USER, NetworkKind.NAMED):
            raise InputError(
                f"a card on {self.network!r} has no access to ports of this host's loopback",
                hint="leave --host-access out: the host reaches the guest by the tap's addresses",
            )
        require_unique([str(port) for port in self.host_access], "port of this host")
        if kind is not NetworkKind.NAMED:
            self._require_plain()
        self._check_egress()
        return self

    def _require_plain(self) -> None:
        for word, usual in _NAMED_ONLY.items():
            if getattr(self, word) != usual:
                raise InputError(
                    f"a card on {self.network!r} has no {word}",
                    hint="use a network with a name: --network default; or make one: cerne network"
                    " create NAME",
                )

    def _check_egress(self) -> None:
        for allowed in self.allow:
            check_allowed(allowed)
        require_unique([str(allowed) for allowed in self.allow], "allowed target")
        if len(self.allow) > _MOST_ALLOWED:
            raise InputError(
                f"{len(self.allow)} allowed targets are too many",
                hint=f"give at most {_MOST_ALLOWED}; a subnet has many addresses",
            )
        if self.allow and self.egress == "none":
            raise InputError(
                "a card may reach nothing (--egress none), and has allowed targets",
                hint="leave --egress none out: with --allow nothing else is allowed",
            )


def nic_fields(text: str) -> dict[str, object]:
    """The fields of a card from ``user``, ``tap:INTERFACE`` or ``NAME[:OPTION=VALUE,...]``.

    The value of ``address`` may have a comma.

    Raises:
        InputError: there is no such option.
    """
    name, colon, options = text.partition(":")
    if not colon or name == NetworkKind.TAP or "=" not in options:
        return {"network": text}
    fields: dict[str, object] = {"network": name}
    last = ""
    for part in options.split(","):
        match = _OPTION.fullmatch(part)
        if match is not None and match["name"] not in fields:
            last = match["name"]
            fields[last] = match["value"]
        elif last == "address" and "=" not in part:
            fields[last] = f"{fields[last]},{part}"
        else:
            raise InputError(f"{part!r} is not an option of the network {name!r}", hint=_OPTIONS)
    return fields


def published_ports(ports: Iterable[PublishedPort | str]) -> tuple[PublishedPort, ...]:
    """Check published ports, and return them.

    Raises:
        InputError: a port is not valid, or is given twice.
    """
    try:
        found = _PORTS.validate_python(tuple(ports))
    except ValidationError as error:
        raise InputError(
            f"{error.errors()[0]['input']!r} is not a published port",
            hint="write it as '8080:80', the port of this host before the guest's",
        ) from error
    _check_ports(found)
    return found


def _check_ports(ports: tuple[PublishedPort, ...]) -> None:
    for port in ports:
        check_port(port)
    require_unique([str(port) for port in ports if port.host_port], "port")
