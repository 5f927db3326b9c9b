"""What the models of a specification share: how they are made, and how sizes are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cerne.errors import InputError
from cerne.spec.limits import SLOTS
from cerne.units import MIB, format_size, parse_size


class Part(BaseModel):
    """A value that does not change, and has the fields that its class names and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Device(Part):
    """A part that is a device of the machine, and may come and go while it runs."""

    slot: Annotated[int | None, Field(ge=0, lt=SLOTS)] = None
    """Where it is added and taken out; None for the first of its kind, which stays."""

    @property
    def number(self) -> int:
        """0 for the first of its kind, which stays, and the slot's number for another."""
        return 0 if self.slot is None else self.slot + 1


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A size, which may be written as people do: ``512M``."""


def require_size(refused: str, size: int, smallest: int, largest: int) -> None:
    """Refuse a size that is out of bounds; `refused` begins the error: ``a machine cannot have …``.

    Raises:
        InputError: it is.
    """
    if not smallest <= size <= largest:
        raise InputError(
            f"{refused} of {format_size(size)}",
            hint=f"ask for {format_size(smallest)} to {format_size(largest)}",
        )


def require_whole_mib(refused: str, size: int) -> None:
    """Refuse a size that is no whole number of MiB, as `require_size` does.

    Raises:
        InputError: it is none.
    """
    if size % MIB:
        raise InputError(f"{refused} of {size} bytes", hint="ask for a whole number of MiB")


def require_unique(values: Sequence[object], what: str) -> None:
    """Refuse values of which one stands there twice.

    Raises:
        InputError: one does.
    """
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"the same {what} is asked for twice", hint="name each one once")
