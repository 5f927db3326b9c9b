"""What the shell offers at the tab key. A failure offers nothing: a shell has no place for it."""

from __future__ import annotations

from cerne.errors import CerneError


def machine_names(incomplete: str) -> list[str]:
    """Names of machines that begin as typed."""
    from cerne.manager import Manager

    try:
        names = [machine.name for machine in Manager().machines()]
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def image_names(incomplete: str) -> list[str]:
    """Names of images, present or built in, that begin as typed."""
    from cerne.manager import Manager

    try:
        names = Manager().images.names_available()
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def snapshot_names(incomplete: str) -> list[str]:
    """Names of snapshots that begin as typed."""
    from cerne.manager import Manager

    try:
        names = Manager().snapshot_names()
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def pool_names(incomplete: str) -> list[str]:
    """Names of pools that begin as typed."""
    from cerne.manager import Manager

    try:
        names = [pool.name for pool in Manager().pools()]
    except CerneError:
        return []
    return [name for name in names if name.startswith(incomplete)]
