"""What callers in Python may ask of a machine, for type checkers and editors.

The words and their meaning are those of the table of fields (`cerne.spec.machine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from cerne.spec.disk import Disk
    from cerne.spec.mount import Mount
    from cerne.spec.ports import PublishedPort


class Adjustment(TypedDict, total=False):
    """What can be changed while a machine runs."""

    balloon: int | str
    """Memory that its guest may have now, in bytes or as ``256M``."""
    cpu_weight: int | None
    """Its share of CPU time beside others, 1 to 10000, where 100 is everybody's."""


class MachineFields(TypedDict, total=False):
    """What a new machine is to be."""

    cpus: int
    """Virtual CPUs."""
    memory: int | str
    """Guest memory, in bytes or as ``512M``."""
    cpu_weight: int | None
    """Its share of CPU time beside others, 1 to 10000, where 100 is everybody's."""
    disk: int | str | None
    """Size of the root disk, in bytes or as ``20G``; the image's own if not given."""
    data_disks: Sequence[Disk | str]
    """Other disks: sizes, for new and empty ones, or paths of files, as
    ``SIZE|PATH[:ro][:format=raw]``."""
    network: str
    """``user``, ``none``, or ``tap:INTERFACE`` for a tap of this host."""
    ports: Sequence[PublishedPort | str]
    """Published ports, such as ``8080:80``."""
    mounts: Sequence[Mount | str]
    """Directories of this host, as ``SOURCE:TARGET[:ro]``."""
    labels: Mapping[str, str]
    """Free words for those who list machines."""
    engine: Literal["auto", "native", "qemu"]
    """Which engine runs it; ``auto`` takes the quicker one for this host."""
