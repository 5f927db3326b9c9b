"""The names that the shell offers at the tab key; after a failure it offers none."""

from __future__ import annotations

from cerne.errors import CerneError


def machine_names(incomplete: str) -> list[str]:
    """The names of machines that begin with the typed text."""
    from cerne.client import connect

    try:
        names = [machine.name for machine in connect().machines()]
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def image_names(incomplete: str) -> list[str]:
    """The names of images, present or built in, that begin with the typed text."""
    from cerne.client import connect

    try:
        names = connect().image_names()
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def snapshot_names(incomplete: str) -> list[str]:
    """The names of snapshots that begin with the typed text."""
    from cerne.client import connect

    try:
        names = connect().snapshot_names()
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def pool_names(incomplete: str) -> list[str]:
    """The names of pools that begin with the typed text."""
    from cerne.client import connect

    try:
        names = [pool.name for pool in connect().pools()]
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def network_names(incomplete: str) -> list[str]:
    """The names of networks that begin with the typed text."""
    from cerne.client import connect

    try:
        names = [network.name for network in connect().networks()]
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]
