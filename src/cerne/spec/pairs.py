"""Keys and values in the notation ``KEY=VALUE``."""

from __future__ import annotations

from collections.abc import Iterable

from cerne.errors import InputError


def parse_pairs(words: Iterable[str], what: str) -> dict[str, str]:
    """Parse the keys and values of words ``KEY=VALUE``; `what` names them in errors.

    Raises:
        InputError: one of the words has no key or no ``=``.
    """
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise InputError(f"{what} {word!r} is not KEY=VALUE", hint="write it as COLOUR=blue")
        found[key] = value
    return found
