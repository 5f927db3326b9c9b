"""A machine's network, as users write it: ``user``, ``none`` or ``tap:INTERFACE``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cerne.errors import InputError

# The names of interfaces that the kernel takes (dev_valid_name), without its patterns.
_INTERFACE = re.compile(r"[!-$&-.0-9;-~]{1,15}", re.ASCII)


class NetworkKind(StrEnum):
    """Kinds of networks."""

    USER = "user"
    """A separate net behind this host's addresses, which needs no privilege."""
    NONE = "none"
    TAP = "tap"
    """An interface of this host."""


@dataclass(frozen=True, slots=True)
class NetworkChoice:
    """The chosen network of a machine."""

    kind: NetworkKind
    interface: str = ""
    """The tap's name."""


def parse_network(text: str) -> NetworkChoice:
    """Parse a network.

    Raises:
        InputError: the text is not a network.
    """
    if text in (NetworkKind.USER, NetworkKind.NONE):
        return NetworkChoice(NetworkKind(text))
    kind, _, interface = text.partition(":")
    named = _INTERFACE.fullmatch(interface) and interface not in (".", "..")
    if kind != NetworkKind.TAP or not named:
        raise InputError(
            f"{text!r} is not a network", hint="write it as user, none or tap:INTERFACE"
        )
    return NetworkChoice(NetworkKind.TAP, interface)
