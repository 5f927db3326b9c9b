"""Reading documents of older formats: numbered functions, each from one format to the next.

A function takes a document of plain JSON types and returns another; it changes nothing in place and
looks at nothing else, because models and devices change and old formats do not. It is tested with a
document that the code of its time wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cerne.errors import DamagedError

Document = dict[str, object]
Upgrades = Mapping[int, Callable[[Document], Document]]
"""From each older format the function that makes the next one of it."""


def formats(newest: int, upgrades: Upgrades) -> range:
    """All formats that can be read."""
    return range(min(upgrades, default=newest), newest + 1)


def require_format(found: object, newest: int, upgrades: Upgrades, what: str) -> int:
    """The format of a document, which comes from a file; to be asked before its body is read.

    Raises:
        DamagedError: it is not a format that can be read.
    """
    readable = formats(newest, upgrades)
    if isinstance(found, int) and not isinstance(found, bool) and found in readable:
        return found
    read = f"format {newest}" if len(readable) == 1 else f"formats {readable[0]} to {newest}"
    whose = " by a newer Cerne" if isinstance(found, int) and found > newest else ""
    raise DamagedError(
        f"{what} was saved in format {found}{whose}, and this Cerne reads {read}",
        hint="use the version of Cerne that saved it",
    )


def upgraded(
    document: Document, found: int, newest: int, upgrades: Upgrades, what: str
) -> Document:
    """A document of an older format, as the newest format has it.

    Raises:
        DamagedError: its format is not one that can be read, or it is not valid in that format.
    """
    for number in range(require_format(found, newest, upgrades, what), newest):
        try:
            document = upgrades[number](document)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DamagedError(f"{what} is not valid in format {number}: {error!r}") from error
    return document
