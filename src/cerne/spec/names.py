"""Names of machines: which are allowed.

A name is also the guest's host name and part of file names, so it is a label as RFC 1123 has it,
with dots and underscores inside.
"""

from __future__ import annotations

import re

from cerne.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_ID = re.compile(r"[0-9a-f]{12}")


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
