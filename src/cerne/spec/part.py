"""The base of the models of a specification, and their checks of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails

from cerne.errors import InputError
from cerne.spec.limits import MOST_CPUS, SLOTS
from cerne.units import MIB, counted, format_size, parse_size


class Part(BaseModel):
    """An immutable value that has only the fields of its class."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Device(Part):
    """A part that is a device of the machine, and may be attached and detached."""

    slot: Annotated[int | None, Field(ge=0, lt=SLOTS)] = None
    """Its slot; None for the first of its kind, which is permanent."""

    @property
    def number(self) -> int:
        """0 for the first of its kind, which is permanent, and the slot's number for others."""
        return 0 if self.slot is None else self.slot + 1


def refusal_words(error: ErrorDetails) -> str:
    """What a value must be and is not, in our words and not in pydantic's."""
    where = ".".join(str(part) for part in error["loc"])
    wanted = error["msg"].removeprefix("Input should be ")
    return f"{where} must be {wanted}, not {error['input']!r}"


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes)]
"""A size, which may be a text: ``512M``."""


_LIKELY_MIB = 65536
"""Bytes up to which a size that is too small was most likely meant in MiB."""


def require_cpus(cpus: int) -> None:
    """Refuse a number of CPUs that no machine has.

    Raises:
        InputError: it is out of bounds.
    """
    if not 1 <= cpus <= MOST_CPUS:
        raise InputError(
            f"cpus is {cpus}, which is not a number of CPUs that a machine may have",
            hint=f"ask for 1 to {MOST_CPUS}",
            field="cpus",
        )


def require_size(what: str, size: int, smallest: int, largest: int) -> None:
    """Refuse a size that is out of bounds; `what` names it in the error.

    Raises:
        InputError: it is out of bounds.
    """
    if not smallest <= size <= largest:
        hint = f"ask for {format_size(smallest)} to {format_size(largest)}"
        if 0 < size <= _LIKELY_MIB:
            hint += f"; a number without a unit is bytes: {size}M is {size} MiB"
        raise InputError(
            f"{what} is {format_size(size)}, which is out of bounds", hint=hint, field=what
        )


def require_whole_mib(what: str, size: int) -> None:
    """Refuse a size that is not a whole number of MiB; `what` names it in the error.

    Raises:
        InputError: it is not.
    """
    if size % MIB:
        raise InputError(
            f"{what} is {counted(size, 'byte')}, which is not a whole number of MiB",
            hint="round it to a whole number of MiB",
            field=what,
        )


def require_unique(values: Sequence[object], what: str) -> None:
    """Refuse values if one of them is there twice.

    Raises:
        InputError: a value is there twice.
    """
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"the {what} {value} is given twice", hint="give each one once")
