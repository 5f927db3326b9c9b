"""What a machine on a network with a name may reach outside of the network, and its notation.

An entry is ``TARGET[:PORT[-PORT]][/tcp|/udp]``; TARGET is an address, a subnet, or a DNS name, such
as ``10.1.0.0/16:443``, ``[2001:db8::/32]:53/udp`` or ``deb.debian.org:80``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_network

from cerne.errors import InputError
from cerne.spec.ports import Protocols

_ENTRY = re.compile(
    r"(?:\[(?P<six>[0-9a-fA-F:./]+)\]|(?P<target>[^\[\]:]+?))"
    r"(?::(?P<first>[0-9]{1,5})(?:-(?P<last>[0-9]{1,5}))?)?(?:/(?P<protocol>tcp|udp))?",
    re.ASCII,
)
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+", re.ASCII)
_LAST_PORT = 65535
_HINT = (
    "write an address, a subnet or a DNS name, and a port if only that is allowed:"
    " 10.1.0.0/16, 192.0.2.7:443, [2001:db8::/32]:53/udp, deb.debian.org:80"
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """A target outside of its network that a machine may reach."""

    target: str
    """A subnet, or a DNS name in small letters."""
    first_port: int = 0
    """0 for all ports."""
    last_port: int = 0
    protocol: Protocols | None = None
    """None for all protocols, or for TCP and UDP if there is a port."""

    @property
    def is_name(self) -> bool:
        """Whether the target is a DNS name."""
        return _subnet(self.target) is None

    def __str__(self) -> str:
        target = f"[{self.target}]" if ":" in self.target else self.target
        ports = "" if not self.first_port else f":{self.first_port}"
        if self.last_port != self.first_port:
            ports += f"-{self.last_port}"
        return target + ports + ("" if self.protocol is None else f"/{self.protocol}")


def parse_allowed(text: str) -> Allowed:
    """Parse a target that a machine may reach.

    Raises:
        InputError: it is not one.
    """
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        raise _refusal(text)
    target = (match["six"] or match["target"]).lower()
    # The last label of a DNS name has a letter, so that a mistyped address is not a name.
    subnet = _subnet(target)
    if subnet is None and (not _DNS_NAME.fullmatch(target) or target.split(".")[-1].isdigit()):
        raise _refusal(text)
    if match["first"] is not None and int(match["first"]) == 0:
        raise InputError(f"{text!r} has ports that are not valid", hint=_HINT)
    first = int(match["first"] or 0)
    last = int(match["last"] or first)
    allowed = Allowed(
        subnet or target, first, last, Protocols(match["protocol"]) if match["protocol"] else None
    )
    check_allowed(allowed)
    return allowed


def check_allowed(allowed: Allowed) -> None:
    """Refuse a target that no rule can allow.

    Raises:
        InputError: its target, its ports or both are not valid.
    """
    valid = _subnet(allowed.target) == allowed.target or _DNS_NAME.fullmatch(allowed.target)
    if not valid:
        raise _refusal(allowed.target)
    ports = (allowed.first_port, allowed.last_port)
    if ports != (0, 0) and not 1 <= allowed.first_port <= allowed.last_port <= _LAST_PORT:
        raise InputError(f"{allowed} has ports that are not valid", hint=_HINT)


def _subnet(target: str) -> str | None:
    """The subnet that a target is, as it is stored; None if it is not one."""
    try:
        return str(ip_network(target, strict=False))
    except ValueError:
        return None


def _refusal(text: str) -> InputError:
    return InputError(f"{text!r} is not a target that a machine may reach", hint=_HINT)
