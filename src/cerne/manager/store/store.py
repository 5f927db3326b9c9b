"""The store: one object for the rows of all nouns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cerne.manager.store.database import Database
from cerne.manager.store.events import Events
from cerne.manager.store.images import Images
from cerne.manager.store.layers import LayerReferences
from cerne.manager.store.machines import Machines
from cerne.manager.store.pools import Pools
from cerne.manager.store.snapshots import Snapshots


class Store(Machines, Snapshots, Pools, Images, LayerReferences, Events):
    """What is known across commands, open for the life of this object."""

    def __init__(
        self, path: Path, require_image: Callable[[str], object] = lambda digest: None
    ) -> None:
        """Open the store, or make it.

        `require_image` refuses, in the transaction that adds what is made of it, an image that is
        gone.

        Raises:
            DamagedError: the file is no store, or one of a newer Cerne.
            StorageError: it cannot be written.
        """
        super().__init__(Database(path), require_image)

    def close(self) -> None:
        """Close the database."""
        self._database.close()
