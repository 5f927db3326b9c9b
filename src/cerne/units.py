"""Sizes and durations: parsing and formatting.

``K``, ``M``, ``G``, ``T`` (also ``Ki``, ``KiB`` …) are powers of 1024, as memory and disks of
virtual machines are counted; ``kB``, ``MB``, ``GB``, ``TB`` are powers of 1000, as in the SI.
"""

from __future__ import annotations

import re

from cerne.errors import InputError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_BINARY = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([kmgt]?)(i?b?)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d|)", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """Parse a size, in bytes, such as ``512M``, ``1.5GiB``, ``2GB`` or ``4096``.

    Raises:
        InputError: the text is not a size, or not a whole number of bytes.
    """
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{text!r} is not a size", hint="write it as 512M, 2G or 1.5GiB")
    # Imported here, because most users of this module only need the units.
    from fractions import Fraction

    number, prefix, suffix = match.groups()
    table = _DECIMAL if suffix.lower() == "b" else _BINARY
    size = Fraction(number) * table[prefix.lower()]
    if size.denominator != 1:
        raise InputError(f"{text!r} is not a whole number of bytes", hint="write it as 512M or 2G")
    return int(size)


def format_size(size: int) -> str:
    """A size for people, in binary units: ``512M``, ``1.5G``, ``900``."""
    for unit, name in ((TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size >= unit:
            return f"{size / unit:.1f}".removesuffix(".0") + name
    return str(size)


def counted(number: int | str, noun: str) -> str:
    """A number with its noun, in the plural unless it is 1: ``1 CPU``, ``1.5 CPUs``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if str(number) == '1' else plural}"


def parse_duration(text: str | float) -> float:
    """Parse a duration, in seconds, such as ``90``, ``1.5s``, ``250ms``, ``2m`` or ``1h``.

    Raises:
        InputError: the text is not a duration.
    """
    if isinstance(text, int | float):
        return float(text)
    match = _DURATION.fullmatch(str(text).strip())
    if match is None:
        raise InputError(f"{text!r} is not a duration", hint="write it as 30s, 250ms or 2m")
    return float(match[1]) * _SECONDS[match[2].lower()]
