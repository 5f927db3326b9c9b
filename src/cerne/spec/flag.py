"""The command line's option for a field of a specification.

A `Flag` annotates its field in the model (`cerne.spec.machine`), which is the only table of fields:
commands make their options from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["make", "template", "set"]
"""The uses of an option: to make a machine, to make a template or a pool, to change a machine."""


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of the commands of its uses."""

    help: str
    kind: Literal["number", "size", "text", "list"] = "text"
    """``list`` for an option that may be repeated."""
    word: str = ""
    """The name for `machine_spec`; empty for the name of the field."""
    names: tuple[str, ...] = ()
    """The option, as typed; empty for the name with dashes."""
    metavar: str = ""
    default: str = ""
    """The shown default; empty for the default of the field."""
    uses: tuple[Use, ...] = ("make",)
    removable: bool = False
    """Whether ``none`` removes the value of a machine that has one, with the use ``set``."""
