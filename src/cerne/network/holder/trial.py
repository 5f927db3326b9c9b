"""Tries what the kernel has for networks, in a namespace that ends with this process.

It writes two lines for each thing that is missing: what it is, and the command that helps.
"""

from __future__ import annotations

from collections.abc import Callable

from cerne.errors import CerneError
from cerne.network.holder import nft
from cerne.network.holder.namespace import Inside, enter_user_namespace, privileged
from cerne.network.links import Links
from cerne.network.rules import BRIDGE

_FAMILIES = ("bridge", "inet")


def main() -> None:
    """Try it, and write what is missing."""
    try:
        if not privileged():
            enter_user_namespace(None)
        inside = Inside(None)
    except CerneError as error:
        _write(error)
        return
    for trial in (_bridge, *(_rules(family) for family in _FAMILIES)):
        try:
            inside.call(trial)
        except CerneError as error:
            _write(error)


def _bridge() -> None:
    with Links() as links:
        links.add_bridge(BRIDGE, "02:00:00:00:00:01")


def _rules(family: str) -> Callable[[], None]:
    def add() -> None:
        nft.apply({"nftables": [{"add": {"table": {"family": family, "name": "trial"}}}]})

    return add


def _write(error: CerneError) -> None:
    print(error.message)
    print(error.hint or "see: dmesg")


if __name__ == "__main__":
    main()
