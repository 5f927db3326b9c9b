"""Names that are made up for machines."""

from __future__ import annotations

import secrets


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_QUALITIES = _words(
    "amber bold calm deep early fair firm green hardy keen late light mild quiet rough "
    "slim stout tall upright young"
)
_TREES = _words(
    "alder ash aspen beech birch cedar cherry cork elm fir hazel holly juniper larch laurel "
    "linden maple oak olive pine plane poplar rowan spruce walnut willow yew"
)


def made_up_name() -> str:
    """A name that is easy to say, such as ``calm-birch-52``."""
    return f"{secrets.choice(_QUALITIES)}-{secrets.choice(_TREES)}-{secrets.randbelow(100)}"
