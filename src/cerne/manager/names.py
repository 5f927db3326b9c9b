"""Names of machines: which are allowed, and how one is made up.

A name is also the guest's host name and part of file names, so it is a label as RFC 1123 has it,
with dots and underscores inside.
"""

from __future__ import annotations

import re
import secrets

from cerne.errors import InputError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_ID = re.compile(r"[0-9a-f]{12}")
_QUALITIES = _words(
    "amber bold calm deep early fair firm green hardy keen late light mild quiet rough "
    "slim stout tall upright young"
)
_TREES = _words(
    "alder ash aspen beech birch cedar cherry cork elm fir hazel holly juniper larch laurel "
    "linden maple oak olive pine plane poplar rowan spruce walnut willow yew"
)


def check_name(name: str, whose: str = "a machine's") -> str:
    """The name itself, where it can be a machine's or a snapshot's.

    Raises:
        InputError: it is empty, too long, or has characters that no name may have.
    """
    if _ID.fullmatch(name):
        raise InputError(
            f"{name} is not a good name: it looks like an ID",
            hint="use other than twelve digits and letters from a to f",
        )
    if not _NAME.fullmatch(name) or ".." in name:
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        raise InputError(
            f"{shown!r} cannot be {whose} name",
            hint="use 1 to 63 letters, digits, and inside of them dots, dashes and underscores",
        )
    return name


def made_up_name() -> str:
    """A name that is easy to say, such as ``calm-birch-52``."""
    return f"{secrets.choice(_QUALITIES)}-{secrets.choice(_TREES)}-{secrets.randbelow(100)}"
