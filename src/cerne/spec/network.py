"""What a card names: ``user``, ``none``, ``tap:INTERFACE``, or a network with a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cerne.errors import InputError

# The names of interfaces that the kernel takes (dev_valid_name), without its patterns.
_INTERFACE = re.compile(r"[!-$&-.0-9;-~]{1,15}", re.ASCII)


_NAME = re.compile("[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", re.ASCII)
_RESERVED = frozenset({"user", "none", "tap", "host"})

DEFAULT = "default"
"""The network that is made when a machine first names it."""


class Uplink(StrEnum):
    """What connects a network with a name to the networks of the host."""

    USER = "user"
    """A process without privilege (pasta): outbound connections, and published ports."""
    NAT = "nat"
    """The host's kernel routes it and translates its addresses; needs root."""
    BRIDGE = "bridge"
    """It is a part of a network of the host; needs root."""
    NONE = "none"
    """Nothing: the network is closed."""


class NetworkKind(StrEnum):
    """Kinds of networks."""

    USER = "user"
    """A separate net behind this host's addresses, which needs no privilege."""
    NONE = "none"
    TAP = "tap"
    """An interface of this host."""
    NAMED = "named"
    """A network that was made with ``cerne network create``, or ``default``."""


@dataclass(frozen=True, slots=True)
class NetworkChoice:
    """The chosen network of a machine."""

    kind: NetworkKind
    interface: str = ""
    """The tap's name."""
    name: str = ""
    """The name of a network with a name."""


def parse_network(text: str) -> NetworkChoice:
    """Parse a network.

    Raises:
        InputError: the text is not a network.
    """
    if text in (NetworkKind.USER, NetworkKind.NONE):
        return NetworkChoice(NetworkKind(text))
    kind, colon, interface = text.partition(":")
    if not colon and text not in _RESERVED and _NAME.fullmatch(text):
        return NetworkChoice(NetworkKind.NAMED, name=text)
    named = _INTERFACE.fullmatch(interface) and interface not in (".", "..")
    if kind != NetworkKind.TAP or not named:
        raise InputError(
            f"{text!r} is not a network",
            hint="write it as user, none, tap:INTERFACE, or as the name of a network: cerne network"
            " ls",
        )
    return NetworkChoice(NetworkKind.TAP, interface)


def is_named(text: str) -> bool:
    """Whether a valid network of a card is one with a name."""
    return ":" not in text and text not in _RESERVED


def check_interface(name: str) -> str:
    """Check a name of an interface, and return it.

    Raises:
        InputError: it is not valid.
    """
    if not _INTERFACE.fullmatch(name) or name in (".", ".."):
        raise InputError(
            f"{name!r} is not a name of an interface",
            hint="see the interfaces of this host: ip link",
        )
    return name


def check_network_name(name: str) -> str:
    """Check a name of a network, and return it.

    Raises:
        InputError: it is not valid, or means something else.
    """
    if name in _RESERVED:
        raise InputError(
            f"{name!r} is a reserved word, and no network's name", hint="give another name: lan"
        )
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not valid as a network's name",
            hint="use up to 32 small letters, digits, and dashes inside",
        )
    return name
