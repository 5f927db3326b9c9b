"""The one way to a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cerne.client.host import Host


def connect() -> Host:
    """The host that this process runs on, with the machines of this user.

    Raises:
        StorageError, DamagedError: its store is not usable.
        HostError, InputError: it has no place for them.
    """
    from cerne.client.local import LocalHost

    return LocalHost()
