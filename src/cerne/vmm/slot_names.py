"""The names of removable devices in QMP, on both engines, made from their slots."""

from __future__ import annotations

from cerne.errors import NotFoundError

_PREFIX = "hot"
_LONGEST_NUMBER = 3


def device_name(slot: int) -> str:
    """The name of the device in a slot."""
    return f"{_PREFIX}{slot}"


def slot_of(name: str) -> int:
    """The slot of the device of this name.

    Raises:
        NotFoundError: no slot has this name.
    """
    digits = name.removeprefix(_PREFIX)
    if digits == name or not digits.isdecimal() or len(digits) > _LONGEST_NUMBER:
        raise NotFoundError(f"there is no device {name}")
    return int(digits)
