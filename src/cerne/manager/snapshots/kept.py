"""Snapshots: a machine as it was, its memory, devices and disk together.

The disk is a layer (`cerne.manager.disks.layers`), the memory a directory that the engine wrote.
The row in the store comes last: without it there is no snapshot, and what is there is swept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.errors import NotFoundError
from cerne.manager.lock import held
from cerne.manager.machines.context import ManagerContext
from cerne.manager.machines.stats import allocated
from cerne.manager.operations import Kind, Operation, recorded
from cerne.manager.store import SnapshotRow, Subject
from cerne.spec.limits import ROOT_SERIAL

if TYPE_CHECKING:
    from cerne.engine.base import Engine
    from cerne.images import Progress
    from cerne.manager.home import Home
    from cerne.manager.snapshots.manifest import Manifest


class KeptSnapshot:
    """What there is of one snapshot: its row, and where its files are."""

    def __init__(self, manager: ManagerContext, row: SnapshotRow) -> None:
        # Models are slow to load, and most commands have nothing to do with snapshots.
        from cerne.manager.snapshots.manifest import read_manifest

        self.context = manager
        self.row = row
        self.manifest: Manifest = read_manifest(row.manifest, f"the snapshot {row.name}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} of {self.manifest.spec.name}>"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits."""
        return self.row.id

    @property
    def name(self) -> str:
        """Its name."""
        return self.row.name

    @property
    def created(self) -> float:
        """When it was made, in seconds since the epoch."""
        return self.row.created

    @property
    def memory(self) -> Path | None:
        """The directory of its memory; None where it has its disk alone."""
        return self.context.home.snapshot_directory(self.id) if self.manifest.has_memory else None

    @property
    def layer(self) -> Path | None:
        """Its disk; None where its image has none."""
        return self.context.home.layer(self.row.layer) if self.row.layer else None

    @property
    def layers(self) -> dict[str, Path]:
        """All its disks, by their serials."""
        root = {} if self.layer is None else {ROOT_SERIAL: self.layer}
        return root | data_layers(self.context.home, self.manifest)

    @property
    def layer_ids(self) -> list[str]:
        """The IDs of the layers that its disks are."""
        return [layer.stem for layer in self.layers.values()]

    @property
    def size(self) -> int:
        """Bytes of this host's disk that its memory takes."""
        return 0 if self.memory is None else allocated(self.memory)

    def engine(self) -> Engine:
        """The engine that goes on with it."""
        wanted = self.manifest.engine or self.manifest.spec.engine
        return self.context.choose_engine(wanted)

    def recorded(
        self, kind: Kind, progress: Progress | None = None
    ) -> AbstractContextManager[Operation]:
        """Keep a row of the operation that is done with it in this block."""
        return recorded(self.context.store, kind, Subject.SNAPSHOT, self.name, progress)

    @contextmanager
    def held(self, operation: str) -> Iterator[None]:
        """Hold its lock, so that nothing else is done to it in this block.

        Raises:
            NotFoundError: it has been removed.
        """
        with held(self.context.home.machine_lock(self.id), operation, self.name):
            if self.context.store.find_snapshot(self.id) is None:
                raise unknown_snapshot(self.name)
            yield


def unknown_snapshot(name: str) -> NotFoundError:
    """The error that there is no snapshot of this name."""
    return NotFoundError(f"there is no snapshot named {name}", hint="see: cerne snapshot ls")


def data_layers(home: Home, manifest: Manifest) -> dict[str, Path]:
    """A snapshot's disks beside the root disk, by their serials."""
    return {serial: home.layer(layer) for serial, layer in manifest.data_layers.items()}
