"""Disks that never change again, and the overlays that machines write to on top of them.

A machine's root disk is frozen by giving its file a second name among the layers, and putting an
empty overlay on that layer in its place. Whoever is killed midway leaves the machine with the disk
that it had: a process that goes on writing does so to the file that is now the layer, and the
overlay that the machine would be started from shows just that. Layers are found to be needless by
reading what the overlays that there are name as their backing file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import DamagedError, StateError
from cerne.images.files import storage_errors, sync_directory
from cerne.manager.lock import held

if TYPE_CHECKING:
    from cerne.manager.home import Home

_MANY_LAYERS = 16
_MOST_LAYERS = 200

_log = logging.getLogger(__name__)


class Layers:
    """The frozen disks of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def freeze(self, machine_id: str) -> Path | None:
        """Freeze a machine's root disk as it is; the layer that its new, empty disk lies on.

        None where it has no disk. A process that runs must be told of the new disk afterwards.

        Raises:
            StorageError: there is no space for it, or the disk cannot be written; it is as it was.
            StateError: there are too many layers under it.
        """
        root = self._home.root_disk(machine_id)
        if not root.exists():
            return None
        if self._depth(root) >= _MOST_LAYERS:
            raise StateError(
                f"the disk {root} lies on {_MOST_LAYERS} layers already, one for each snapshot and"
                " each fork",
                hint="stop the machine and start it again: they are merged then",
            )
        layer = self._home.layer(uuid.uuid4().hex[:12])
        with self.locked(), storage_errors(f"freezing {root}", self._home.data):
            os.link(root, layer)
            faults.step("layer linked")
            self._put_overlay(layer, root)
            faults.step("layer frozen")
        return layer

    def merge(self, machine_id: str, base: Path, base_format: str) -> None:
        """Have the disk of a machine that does not run lie on its image's, if on many layers.

        Raises:
            StorageError: there is no space for what is in them.
        """
        from cerne.storage.flatten import merge

        root = self._home.root_disk(machine_id)
        if self._depth(root) > _MANY_LAYERS:
            merge(root, base, base_format)

    def overlay(self, layer: Path, path: Path) -> None:
        """Make an empty overlay on a layer.

        Raises:
            StorageError: it cannot be made.
        """
        with self.locked(), storage_errors(f"making {path}", self._home.data):
            self._put_overlay(layer, path)

    def replace(self, machine_id: str, layer: Path) -> None:
        """Put an empty overlay on a layer in the place of a machine's root disk, until `commit`.

        Raises:
            StorageError: it cannot be made; the disk is as it was.
        """
        root, old = self._home.root_disk(machine_id), self._old(machine_id)
        with self.locked(), storage_errors(f"replacing {root}", self._home.data):
            old.unlink(missing_ok=True)
            os.link(root, old)
            self._put_overlay(layer, root)
        faults.step("disk replaced")

    def is_replaced(self, machine_id: str) -> bool:
        """Whether `replace` has neither been committed nor been undone."""
        return self._old(machine_id).exists()

    def commit(self, machine_id: str) -> None:
        """Give up what `replace` replaced, if anything."""
        self._old(machine_id).unlink(missing_ok=True)

    def roll_back(self, machine_id: str) -> None:
        """Undo what `replace` did, if anything."""
        with contextlib.suppress(FileNotFoundError):
            self._old(machine_id).rename(self._home.root_disk(machine_id))
            sync_directory(self._home.machine_directory(machine_id))

    def collect(self, kept: Iterable[Path]) -> None:
        """Remove the layers that no machine's disk and none of `kept` needs.

        Where a disk cannot be read, all layers are kept.
        """
        if not any(self._home.layers.iterdir()):
            return
        with self.locked():
            for half_made in self._home.machines.glob("*/root.qcow2.new"):
                half_made.unlink()
            try:
                needed = self._needed(kept)
            except DamagedError as error:
                _log.warning("no layers are removed: %s", error.message)
                return
            for layer in self._home.layers.iterdir():
                if layer not in needed:
                    layer.unlink()

    def _needed(self, kept: Iterable[Path]) -> set[Path]:
        from cerne.storage.overlay import backing_of

        needed: set[Path] = set()
        found = [*kept, *self._home.machines.glob("*/root.qcow2*")]
        while found:
            path = found.pop()
            if path in needed or not path.exists():
                continue
            needed.add(path)
            backing = backing_of(path)
            # What lies below the layers is an image's.
            if backing is not None and backing[0].parent == self._home.layers:
                found.append(backing[0])
        return needed

    def _depth(self, root: Path) -> int:
        from cerne.storage.overlay import chain

        return sum(path.parent == self._home.layers for path, _ in chain(root, "qcow2"))

    def _put_overlay(self, layer: Path, path: Path) -> None:
        from cerne.storage.overlay import create_overlay

        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        create_overlay(layer, "qcow2", fresh)
        faults.step("overlay made")
        fresh.rename(path)
        sync_directory(path.parent)

    def _old(self, machine_id: str) -> Path:
        root = self._home.root_disk(machine_id)
        return root.with_name(f"{root.name}.old")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No layer is collected in this block."""
        with held(self._home.layers_lock, "layers", "the machines' disks"):
            yield
