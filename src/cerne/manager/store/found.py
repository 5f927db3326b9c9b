"""Which layers the disks of a home are on, as the headers of their files say.

The store knows it by rows. This is for layers that have none: those of a store that an older Cerne
wrote, and of one that was taken back from a copy.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cerne.errors import DamagedError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundLayers:
    """The layers that are needed, and by what."""

    parents: Mapping[str, str | None]
    """Each layer that is needed, with the one under it; None where that is no layer."""
    machines: Mapping[str, frozenset[str]]
    """The layers right under the disks of each machine, by the machine's ID."""


def found_layers(layers: Path, machines: Path, others: Iterable[str]) -> FoundLayers:
    """Read the headers of all machines' disks, and of the layers under them and under `others`.

    A disk that is unreadable may be on any layer.

    Args:
        layers: the directory of the layers, each named by its ID.
        machines: the directory that holds one of each machine, named by its ID.
        others: the IDs of layers that something else needs.
    """
    of_machines: dict[str, set[str]] = {}
    for directory in machines.glob("*/"):
        of_machines[directory.name] = set()
        for disk in disks_in(directory):
            of_machines[directory.name] |= _may_lie_on(disk, layers)
    parents: dict[str, str | None] = {}
    needed = {*others, *(layer for found in of_machines.values() for layer in found)}
    while needed:
        layer = needed.pop()
        parents[layer] = parent = _parent(layers / f"{layer}.qcow2", layers)
        if parent is not None and parent not in parents:
            needed.add(parent)
    machine_layers = {machine: frozenset(found) for machine, found in of_machines.items()}
    return FoundLayers(parents, machine_layers)


def disks_in(directory: Path) -> Iterator[Path]:
    """The disks in a machine's directory, with those that it may go back to.

    What a command that was killed has not completed is none.
    """
    yield from directory.glob("*.qcow2")
    yield from directory.glob("*.qcow2.old")


def layer_under(disk: Path, layers: Path) -> str | None:
    """The ID of the layer right under a disk; None where it lies on none.

    Raises:
        DamagedError: it is unreadable.
    """
    from cerne.storage.overlay import backing_of

    backing = backing_of(disk)
    # What lies below the layers is an image's.
    return backing[0].stem if backing is not None and backing[0].parent == layers else None


def _may_lie_on(disk: Path, layers: Path) -> set[str]:
    try:
        layer = layer_under(disk, layers)
    except DamagedError as error:
        _log.warning("%s may lie on any layer: %s", disk, error.message)
        return {path.stem for path in layers.glob("*.qcow2")}
    return set() if layer is None else {layer}


def _parent(layer: Path, layers: Path) -> str | None:
    try:
        return layer_under(layer, layers)
    except DamagedError as error:
        _log.warning("nothing is known to be under a layer: %s", error.message)
        return None
