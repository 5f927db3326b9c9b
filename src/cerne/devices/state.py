"""Reads saved state of devices: plain JSON types that are not checked yet.

A device saves itself as a dict of numbers, flags, texts, lists and further dicts. Saved state comes
from a disk, so each value is checked by its name, its type and its limits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NoReturn, Protocol

from cerne.errors import DamagedError

_SURROGATE = re.compile("[\ud800-\udfff]")

PlainState = dict[str, object]
"""Saved state: only JSON types."""


class Record(Protocol):
    """A named tuple."""

    def _asdict(self) -> Mapping[str, object]: ...


def plain(record: Record) -> PlainState:
    """A named tuple as JSON: its fields, and the fields of tuples in it."""
    return {name: _plain(value) for name, value in record._asdict().items()}


def _plain(value: object) -> object:
    if not isinstance(value, tuple):
        return value
    return plain(value) if hasattr(value, "_asdict") else [_plain(each) for each in value]


class SavedState:
    """The saved state of one device or of a part of it."""

    def __init__(self, what: str, values: Mapping[str, object]) -> None:
        self._what = what
        self._values = values

    def integer(self, name: str, largest: int, smallest: int = 0) -> int:
        """A whole number within its limits; raises DamagedError for anything else."""
        value = self._value(name)
        if not isinstance(value, int) or isinstance(value, bool):
            self._refuse(name)
        if not smallest <= value <= largest:
            self._refuse(name)
        return value

    def optional_integer(self, name: str, largest: int) -> int | None:
        """A whole number from 0 on, or None; raises DamagedError for anything else."""
        return None if self._value(name) is None else self.integer(name, largest)

    def integers(self, name: str, largest: int) -> list[int]:
        """Whole numbers from 0 on; raises DamagedError for anything else."""
        values = self._value(name)
        if not isinstance(values, list | tuple):
            self._refuse(name)
        return [SavedState(self._what, {name: each}).integer(name, largest) for each in values]

    def is_none(self, name: str) -> bool:
        """Whether an optional part is None; raises DamagedError if it is missing."""
        return self._value(name) is None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def flag(self, name: str) -> bool:
        """True or false; raises DamagedError for anything else."""
        value = self._value(name)
        if not isinstance(value, bool):
            self._refuse(name)
        return value

    def text(self, name: str, longest: int) -> str:
        """A text of limited length; raises DamagedError for anything else."""
        value = self._value(name)
        # JSON may contain lone surrogates, which have no encoding.
        if not isinstance(value, str) or len(value) > longest or _SURROGATE.search(value):
            self._refuse(name)
        return value

    def data(self, name: str, longest: int) -> bytes:
        """Bytes, which are saved in hexadecimal; raises DamagedError for anything else."""
        text = self.text(name, 2 * longest)
        try:
            return bytes.fromhex(text)
        except ValueError:
            self._refuse(name)

    def section(self, name: str) -> SavedState:
        """The saved state of a part; raises DamagedError for anything else."""
        return self._section(name, self._value(name))

    def sections(self, name: str, count: int | None) -> list[SavedState]:
        """The saved states of that many parts, or of any number; raises DamagedError otherwise."""
        values = self._value(name)
        if not isinstance(values, list | tuple) or count not in (None, len(values)):
            self._refuse(name)
        return [self._section(f"{name}[{at}]", value) for at, value in enumerate(values)]

    def plain_list(self, name: str, count: int) -> list[PlainState]:
        """That many parts as plain JSON; raises DamagedError for anything else."""
        return [dict(each._values) for each in self.sections(name, count)]

    def plain(self, name: str) -> PlainState:
        """A part as plain JSON, for its device; raises DamagedError if it is missing."""
        return dict(self.section(name)._values)

    def _section(self, name: str, value: object) -> SavedState:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self._refuse(name)
        return SavedState(f"{self._what}.{name}", value)

    def _value(self, name: str) -> object:
        if name not in self._values:
            raise DamagedError(f"the saved state of {self._what} lacks {name!r}")
        return self._values[name]

    def _refuse(self, name: str) -> NoReturn:
        raise DamagedError(f"the saved state of {self._what} has a {name!r} that is not valid")
