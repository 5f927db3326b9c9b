"""The network cards of a machine: the first one, and those that are attached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import BeforeValidator, TypeAdapter, ValidationError, model_validator

from cerne.errors import InputError
from cerne.spec.network import NetworkKind, parse_network
from cerne.spec.part import Device, require_unique
from cerne.spec.ports import PublishedPort, check_port, parse_publish


def _port(value: object) -> object:
    if isinstance(value, int):
        raise InputError(
            f"{value} is not a published port: it does not name a port of the guest",
            hint=f"write '{value}:{value}', the port of this host before the guest's",
        )
    return parse_publish(value) if isinstance(value, str) else value


Port = Annotated[PublishedPort, BeforeValidator(_port)]
"""A published port, which may be a text: ``8080:80``."""

_PORTS: TypeAdapter[tuple[PublishedPort, ...]] = TypeAdapter(tuple[Port, ...])


class Nic(Device):
    """A network card of a machine."""

    network: str = "user"
    """``user`` or ``tap:INTERFACE``."""
    ports: tuple[Port, ...] = ()
    """Ports of the host that lead to ports of the guest."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        kind = parse_network(self.network).kind
        _check_ports(self.ports)
        if self.ports and kind is not NetworkKind.USER:
            raise InputError(
                f"a machine with the network {self.network!r} publishes no ports",
                hint="leave --publish out: with a tap the guest has its own address",
            )
        if self.ports and self.slot is not None:
            raise InputError(
                "an attached network card publishes no ports",
                hint="publish them when the machine is made: cerne run --publish",
            )
        if kind is NetworkKind.NONE:
            raise InputError(
                f"{self.network!r} is not a network for a card",
                hint="write user or tap:INTERFACE",
            )
        return self


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
