"""Disks that never change again, and the overlays that machines write to on top of them.

A machine's own disk is frozen by giving its file a second name among the layers, and putting an
empty overlay on that layer in its place. A command that is killed midway leaves the machine with
the disk that it had: a process that goes on writing does so to the file that is now the layer, and
the overlay that the machine would be started from shows just that. Rows of the store say which disk
is on which layer (`cerne.manager.store.layers`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import BusyError, DamagedError, StateError
from cerne.images.files import storage_errors, sync_directory
from cerne.manager.lock import held
from cerne.manager.store.found import disks_in, found_layers, layer_under

if TYPE_CHECKING:
    from cerne.manager.home import Home
    from cerne.manager.store import Store

_MANY_LAYERS = 16
_MOST_LAYERS = 200
_COLLECTING_PATIENCE = 2.0

_log = logging.getLogger(__name__)


class Layers:
    """The frozen disks of one home."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home = home
        self._store = store

    def freeze(self, machine_id: str, disks: Mapping[str, Path]) -> dict[str, Path]:
        """Freeze a machine's own disks as they are; the layers under its new disks.

        Disks and layers are by their serials. A process that runs must be told of the new disks
        afterwards.

        Raises:
            StorageError: there is no space for one, or it cannot be written; it is as it was.
            StateError: there are too many layers under one.
        """
        for disk in disks.values():
            if self._depth(disk) >= _MOST_LAYERS:
                raise StateError(
                    f"the disk {disk} has {_MOST_LAYERS} layers under it already, one for each"
                    " snapshot and each fork",
                    hint="stop the machine and start it again, which merges them",
                )
        layers = {serial: self._home.layer(uuid.uuid4().hex[:12]) for serial in disks}
        parents = {
            layer.stem: layer_under(disks[serial], self._home.layers)
            for serial, layer in layers.items()
        }
        unknown = {parent for parent in parents.values() if parent} - self._store.known_layers()
        if unknown:
            with self.locked():
                self._adopt(unknown)
        self._store.add_layers(parents, machine_id)
        faults.step("layers added")
        for serial, disk in disks.items():
            with self.locked(), storage_errors(f"freezing {disk}", self._home.data):
                os.link(disk, layers[serial])
                faults.step("layer linked")
                self._put_overlay(layers[serial], disk)
                faults.step("layer frozen")
        return layers

    def merge(self, disk: Path, base: Path | None, base_format: str) -> bool:
        """Put the disk of a machine that does not run on its base, if it has too many layers.

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
        """Give a disk that no machine has all its data, so that it can go anywhere.

        Raises:
            StorageError: there is no space for what is in the layers under it.
        """
        from cerne.storage.flatten import merge

        if self._depth(disk):
            merge(disk, None, "")

    def overlay(self, layer: Path, path: Path) -> None:
        """Make an empty overlay on a layer.

        Raises:
            StorageError: making it failed.
        """
        with self.locked(), storage_errors(f"making {path}", self._home.data):
            self._put_overlay(layer, path)

    def replace(self, disk: Path, layer: Path) -> None:
        """Put an empty overlay on a layer in the place of a machine's disk, until `commit`.

        Raises:
            StorageError: making it failed; the disk is unchanged.
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

    def settle(self, machine_id: str) -> None:
        """Forget the layers that a machine's disks were on before.

        Raises:
            DamagedError: one is unreadable.
        """
        known = self._store.layers_of(machine_id)
        if known:
            disks = disks_in(self._home.machine_directory(machine_id))
            under = {layer_under(disk, self._home.layers) for disk in disks}
            if known - under:
                self._store.drop_layers_of(machine_id, known - under)

    def collect(self, kept: Callable[[], Iterable[str]]) -> None:
        """Remove the layers that no machine, no snapshot and none of `kept` needs.

        `kept` is asked under the lock: a command that adds a layer holds it until the layer is
        kept. Where `kept` raises `DamagedError`, all layers are kept.
        """
        if not any(self._home.layers.iterdir()):
            return
        with self.locked(_COLLECTING_PATIENCE):
            try:
                others = {*kept(), *self._under_detached_disks()}
            except DamagedError as error:
                _log.warning("no layers are removed: %s", error.message)
                return
            known = self._store.known_layers()
            links = {layer.stem: layer.stat().st_nlink for layer in self._home.layers.iterdir()}
            has_unknown = not known.issuperset(links)
            if has_unknown:
                self._adopt(others)
            self._settle_unfrozen({layer for layer in known if links.get(layer) != 1})
            if has_unknown or self._store.has_needless_layers(others):
                self._remove_needless(others)

    def _settle_unfrozen(self, layers: Set[str]) -> None:
        """Put right what a command left that was killed between a layer and the disk on it."""
        for machine_id in self._store.machines_on(layers):
            # Another command works on it, or it is damaged and may need any layer.
            with (
                contextlib.suppress(BusyError, DamagedError),
                held(self._home.machine_lock(machine_id), "recovery", machine_id, patience=0),
            ):
                self.settle(machine_id)

    def _adopt(self, others: Iterable[str]) -> None:
        """Give rows to the layers that are needed and have none, by what the disks say."""
        found = found_layers(self._home.layers, self._home.machines, others)
        self._store.adopt_layers(found)

    def _remove_needless(self, others: Iterable[str]) -> None:
        with self._store.without_needless_layers(others) as needed:
            for layer in self._home.layers.iterdir():
                if layer.stem not in needed:
                    layer.unlink()

    def _under_detached_disks(self) -> Iterator[str]:
        """The layers of detached disks: there was no space to copy what is in them."""
        for disk in self._home.disks.glob("*.qcow2"):
            layer = layer_under(disk, self._home.layers)
            if layer is not None:
                yield layer

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
