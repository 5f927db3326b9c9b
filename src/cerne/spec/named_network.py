"""The specification of a network with a name.

Such a network is a network namespace of its own with a bridge, in which each card has an address.
Its subnets are private ones (RFC 1918, RFC 4193) unless others are asked for.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from cerne.errors import DamagedError, InputError
from cerne.spec.network import Uplink, check_interface, check_network_name
from cerne.spec.part import Part, refusal_words

_HINT = "write an IPv4 subnet as 10.20.0.0/24, and an IPv6 subnet as fd00:20::/64"
_LARGEST_4, _SMALLEST_4 = 8, 29
_PREFIX_6 = 64


def _subnet4(value: object) -> object:
    if not isinstance(value, str):
        return value
    subnet = _subnet(value)
    if not isinstance(subnet, IPv4Network) or not _LARGEST_4 <= subnet.prefixlen <= _SMALLEST_4:
        raise InputError(f"{value} is not an IPv4 subnet of /8 to /29", hint=_HINT)
    return str(subnet)


def _subnet6(value: object) -> object:
    if not isinstance(value, str):
        return value
    subnet = _subnet(value)
    if not isinstance(subnet, IPv6Network) or subnet.prefixlen != _PREFIX_6:
        raise InputError(f"{value} is not an IPv6 subnet of /64", hint=_HINT)
    return str(subnet)


def _subnet(value: str) -> IPv4Network | IPv6Network:
    try:
        found = ip_network(value.strip())
    except ValueError as error:
        raise InputError(f"{value!r} is not a subnet: {error}", hint=_subnet_hint(value)) from error
    if found.is_multicast or found.is_loopback or found.is_link_local or found.is_unspecified:
        raise InputError(f"{value} has no addresses for machines", hint=_HINT)
    return found


def _subnet_hint(value: str) -> str:
    """How to write a subnet; the one that an address is in, if that was given."""
    try:
        return f"its subnet is {ip_network(value.strip(), strict=False)}"
    except ValueError:
        return _HINT


class NetworkSpec(Part):
    """The specification of a network with a name.

    Its values are checked here; whether its subnets are free on a host is for the manager.
    """

    version: Literal[1] = 1
    name: str
    uplink: Uplink = Uplink.USER
    """What connects it to the networks of the host."""
    ipv4: Annotated[str | None, BeforeValidator(_subnet4)] = None
    """Its IPv4 subnet; None for one that Cerne picks."""
    ipv6: Annotated[str | None, BeforeValidator(_subnet6)] = None
    """Its IPv6 subnet, a /64; None for one that Cerne picks."""
    parent: str = ""
    """The bridge or interface of the host, for the uplink ``bridge``."""
    vlan: Annotated[int | None, Field(ge=1, le=4094)] = None
    """The VLAN of the parent."""
    force: bool = False
    """Whether the parent may be the interface of the host's default route."""

    @field_validator("name")
    @classmethod
    def _name_is_one(cls, name: str) -> str:
        return check_network_name(name)

    @model_validator(mode="after")
    def _values_go_together(self) -> Self:
        if self.uplink is Uplink.BRIDGE:
            self._check_bridge()
        elif self.parent or self.vlan is not None or self.force:
            raise InputError(
                f"the network {self.name} has a parent or a VLAN, and its uplink {self.uplink}"
                " has none",
                hint="write --uplink bridge --parent INTERFACE, or leave --parent, --vlan and"
                " --force out",
            )
        return self

    def _check_bridge(self) -> None:
        if not self.parent:
            raise InputError(
                f"the network {self.name} has the uplink bridge, and no parent",
                hint="name a bridge or an interface of this host: --parent br0",
            )
        check_interface(self.parent)
        if self.ipv4 or self.ipv6:
            raise InputError(
                f"the network {self.name} has a subnet, and its machines get their addresses from"
                f" the network of {self.parent}",
                hint="leave --ipv4 and --ipv6 out",
            )


def network_spec(name: str, **asked: object) -> NetworkSpec:
    """Make a specification of a network; all values are checked.

    Raises:
        InputError: a field is unknown, or its value is not valid.
    """
    try:
        return NetworkSpec.model_validate({"name": name, **asked})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise InputError(f"a network has no field {first['loc'][-1]}") from error
        raise InputError(refusal_words(first), hint="see: cerne network create --help") from error


def stored_network_spec(text: str, name: str) -> NetworkSpec:
    """Read the stored specification of a network from JSON.

    Raises:
        DamagedError: it is damaged, or its version is unknown.
    """
    try:
        return NetworkSpec.model_validate_json(text)
    except (ValidationError, InputError) as error:
        raise DamagedError(
            f"the stored specification of the network {name} is not readable",
            hint="if another version of Cerne wrote it, use that one; else remove it: cerne network"
            f" rm {name}",
        ) from error
