"""The store: one object for the rows of all nouns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.manager.store.changes import Changes
from cerne.manager.store.database import Database
from cerne.manager.store.events import Events
from cerne.manager.store.images import Images
from cerne.manager.store.layers import LayerReferences
from cerne.manager.store.machines import Machines
from cerne.manager.store.networks import Networks
from cerne.manager.store.operations import Operations
from cerne.manager.store.pools import Pools
from cerne.manager.store.promises import Promises
from cerne.manager.store.snapshots import Snapshots

if TYPE_CHECKING:
    from cerne.host.ledger import HostLedger


class Store(
    Machines, Networks, Promises, Snapshots, Pools, Images, LayerReferences, Events, Operations
):
    """What is known across commands, open for the life of this object."""

    def __init__(
        self,
        path: Path,
        require_image: Callable[[str], object] = lambda digest: None,
        waiters: Path | None = None,
        host: HostLedger | None = None,
    ) -> None:
        """Open the store, or make it.

        Args:
            path: the database.
            require_image: refuses, in the transaction that adds what is made of it, an image that
                is gone.
            waiters: the directory of the FIFOs of processes that wait for changes; one beside the
                database if not given.
            host: the ledger of the host, if other homes see what is promised here.

        Raises:
            DamagedError: the file is not a store, or a newer Cerne wrote it.
            StorageError: it is not writable.
        """
        database = Database(path, waiters or path.with_name("waiters"))
        super().__init__(database, require_image, host)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def changes(self) -> AbstractContextManager[Changes]:
        """A wait for changes, of this process or another; those in the block are heard of."""
        return self._database.waiters.waiting()
