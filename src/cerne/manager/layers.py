"""Disks that never change again, and the overlays that machines write to on top of them.

A machine's own disk is frozen by giving its file a second name among the layers, and putting an
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
from collections.abc import Callable, Iterable, Iterator
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
_COLLECTING_PATIENCE = 2.0

_log = logging.getLogger(__name__)


class Layers:
    """The frozen disks of one home."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def freeze(self, disk: Path) -> Path:
        """Freeze a machine's own disk as it is; the layer that its new, empty disk lies on.

        A process that runs must be told of the new disk afterwards.

        Raises:
            StorageError: there is no space for it, or the disk cannot be written; it is as it was.
            StateError: there are too many layers under it.
        """
        if self._depth(disk) >= _MOST_LAYERS:
            raise StateError(
                f"the disk {disk} lies on {_MOST_LAYERS} layers already, one for each snapshot and"
                " each fork",
                hint="stop the machine and start it again: they are merged then",
            )
        layer = self._home.layer(uuid.uuid4().hex[:12])
        with self.locked(), storage_errors(f"freezing {disk}", self._home.data):
            os.link(disk, layer)
            faults.step("layer linked")
            self._put_overlay(layer, disk)
            faults.step("layer frozen")
        return layer

    def merge(self, disk: Path, base: Path | None, base_format: str) -> bool:
        """Have the disk of a machine that does not run lie on its base, if on too many layers.

        Whether it did; layers may be needless then.

        Raises:
            StorageError: there is no space for what is in them.
        """
        from cerne.storage.flatten import merge

        if self._depth(disk) <= _MANY_LAYERS:
            return False
        merge(disk, base, base_format)
        return True

    def flatten(self, disk: Path) -> None:
        """Have a disk that no machine has lie on nothing, so that it can go anywhere.

        Raises:
            StorageError: there is no space for what is in the layers under it.
        """
        from cerne.storage.flatten import merge

        if self._depth(disk):
            merge(disk, None, "")

    def overlay(self, layer: Path, path: Path) -> None:
        """Make an empty overlay on a layer.

        Raises:
            StorageError: it cannot be made.
        """
        with self.locked(), storage_errors(f"making {path}", self._home.data):
            self._put_overlay(layer, path)

    def replace(self, disk: Path, layer: Path) -> None:
        """Put an empty overlay on a layer in the place of a machine's disk, until `commit`.

        Raises:
            StorageError: it cannot be made; the disk is as it was.
        """
        old = _old(disk)
        with self.locked(), storage_errors(f"replacing {disk}", self._home.data):
            old.unlink(missing_ok=True)
            os.link(disk, old)
            self._put_overlay(layer, disk)
        faults.step("disk replaced")

    def is_replaced(self, disk: Path) -> bool:
        """Whether `replace` has neither been committed nor been undone."""
        return _old(disk).exists()

    def commit(self, disk: Path) -> None:
        """Give up what `replace` replaced, if anything."""
        _old(disk).unlink(missing_ok=True)

    def roll_back(self, disk: Path) -> None:
        """Undo what `replace` did, if anything."""
        with contextlib.suppress(FileNotFoundError):
            _old(disk).rename(disk)
            sync_directory(disk.parent)

    def collect(self, kept: Callable[[], Iterable[Path]]) -> None:
        """Remove the layers that no machine's disk and none of `kept` needs.

        `kept` is asked under the lock: whoever adds a layer holds it until the layer is kept.
        Where a disk cannot be read, or `kept` raises `DamagedError`, all layers are kept.
        """
        if not any(self._home.layers.iterdir()):
            return
        with self.locked(_COLLECTING_PATIENCE):
            for half_made in self._home.machines.glob("*/*.qcow2.new"):
                half_made.unlink()
            try:
                needed = self._needed(kept())
            except DamagedError as error:
                _log.warning("no layers are removed: %s", error.message)
                return
            for layer in self._home.layers.iterdir():
                if layer not in needed:
                    layer.unlink()

    def _needed(self, kept: Iterable[Path]) -> set[Path]:
        from cerne.storage.overlay import backing_of

        needed: set[Path] = set()
        found = [*kept, *self._home.machines.glob("*/*.qcow2*"), *self._home.disks.glob("*.qcow2")]
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

    def _depth(self, disk: Path) -> int:
        from cerne.storage.overlay import chain

        return sum(path.parent == self._home.layers for path, _ in chain(disk, "qcow2"))

    def _put_overlay(self, layer: Path, path: Path) -> None:
        from cerne.storage.overlay import create_overlay

        fresh = path.with_name(f"{path.name}.new")
        fresh.unlink(missing_ok=True)
        create_overlay(layer, "qcow2", fresh)
        faults.step("overlay made")
        fresh.rename(path)
        sync_directory(path.parent)

    @contextlib.contextmanager
    def locked(self, patience: float | None = None) -> Iterator[None]:
        """No layer is collected in this block.

        Raises:
            BusyError: another command still has the lock after `patience` seconds.
        """
        with held(self._home.layers_lock, "layers", "the machines' disks", patience):
            yield


def _old(disk: Path) -> Path:
    return disk.with_name(f"{disk.name}.old")
