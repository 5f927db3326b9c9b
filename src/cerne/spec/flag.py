"""How a field of a specification is asked for on a command line.

A `Flag` stands at its field in the model (`cerne.spec.machine`), which is the one table of fields:
commands make their options of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Use = Literal["make", "template", "set"]
"""Making a machine; making a template or a pool, which have what tells one template from another;
changing a machine that may be running."""


@dataclass(frozen=True, slots=True)
class Flag:
    """An option of the commands of its uses."""

    help: str
    kind: Literal["number", "size", "text", "list"] = "text"
    """``list`` for an option that may be repeated."""
    word: str = ""
    """What `machine_spec` calls it; empty for the name of the field."""
    names: tuple[str, ...] = ()
    """The option, as it is typed; empty for the word with dashes."""
    metavar: str = ""
    default: str = ""
    """What holds if it is not given, in words; empty for the default of the field."""
    uses: tuple[Use, ...] = ("make",)
