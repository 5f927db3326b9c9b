"""The client of the agent in a guest.

``docs/agent.md`` describes the protocol. Everything here is imported at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cerne.guest.client import GuestAgent, GuestInfo
    from cerne.guest.process import (
        ExecResult,
        ExecTextResult,
        ExitStatus,
        GuestProcess,
        Output,
        Stream,
        TerminalSize,
    )

_HOMES = {
    "ExecResult": "cerne.guest.process",
    "ExecTextResult": "cerne.guest.process",
    "ExitStatus": "cerne.guest.process",
    "GuestAgent": "cerne.guest.client",
    "GuestInfo": "cerne.guest.client",
    "GuestProcess": "cerne.guest.process",
    "Output": "cerne.guest.process",
    "Stream": "cerne.guest.process",
    "TerminalSize": "cerne.guest.process",
}

__all__ = [
    "ExecResult",
    "ExecTextResult",
    "ExitStatus",
    "GuestAgent",
    "GuestInfo",
    "GuestProcess",
    "Output",
    "Stream",
    "TerminalSize",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
