"""The allowed names of machines.

A name is also the guest's host name and part of file names, so it is a label of RFC 1123, with dots
and underscores inside.
"""

from __future__ import annotations

import re

from cerne.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_ID = re.compile(r"[0-9a-f]{12}")


def check_name(name: str, whose: str = "a machine's") -> str:
    """Check a name of a machine or a snapshot, and return it.

    Raises:
        InputError: it is empty, too long, or has characters that a name may not have.
    """
    if _ID.fullmatch(name):
        raise InputError(
            f"{name} is not a valid name: it looks like an ID",
            hint="do not use twelve digits and letters from a to f",
        )
    if not _NAME.fullmatch(name) or ".." in name:
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        raise InputError(
            f"{shown!r} is not valid as {whose} name",
            hint="use 1 to 63 letters, digits, and inside of them dots, dashes and underscores",
        )
    return name
