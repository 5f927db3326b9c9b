"""The options of machines in Python, for type checkers and editors.

The words and their meaning are those of the table of fields (`cerne.spec.machine`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from cerne.spec.disk import Disk
    from cerne.spec.egress import Allowed
    from cerne.spec.mount import Mount
    from cerne.spec.ports import PublishedPort


class ResourceFields(TypedDict, total=False):
    """Guarantees, limits and weights; ``none`` removes one of a machine that has it."""

    cpu_guarantee: float | str | None
    """CPUs that it has if it needs them, as a number, ``1.5`` or ``50%``."""
    cpu_limit: float | str | None
    """CPUs that it uses at most."""
    cpu_weight: int | str | None
    """Its share of CPU time among all machines, 1 to 10000; 100 is the default."""
    cpu_pin: str | None
    """The only CPUs of this host on which it runs, as ``0-3,8``."""
    numa_node: int | str | None
    """The NUMA node of this host for its memory, and for its CPUs if it is not pinned."""
    memory_guarantee: int | str | None
    """Memory that is promised to it, in bytes or as ``256M``; all of it if not given."""
    memory_limit: int | str | None
    """Memory that all its processes have at most, in bytes or as ``1G``."""
    memory_swap: bool | str | None
    """Whether the host may swap its memory out."""
    memory_hugepages: bool | str | None
    """Whether its guest's memory is in hugepages that the host has set aside."""
    memory_merge: bool | str | None
    """Whether the host may merge its memory with equal memory of others (KSM)."""
    disk_iops: int | str | None
    """Requests a second to all its disks at most."""
    disk_rate: int | str | None
    """Bytes a second from and to all its disks at most, also as ``20M``."""
    disk_weight: int | str | None
    """Its share of the host's disks among all machines, 1 to 10000; 100 is the default."""
    network_rate: str | None
    """Bytes a second that it receives and sends at most, as ``10M`` or ``10M/2M``."""
    pids_limit: int | str | None
    """Processes and threads of this host that it has at most."""


class ShapeFields(TypedDict, total=False):
    """What a machine is made of, which another start may have otherwise."""

    cpus: int
    """Virtual CPUs."""
    max_cpus: int | None
    """Virtual CPUs to which it can grow while it runs; no more than it has if not given."""
    memory: int | str
    """Guest memory, in bytes or as ``512M``."""
    disk: int | str | None
    """Size of the root disk, in bytes or as ``20G``; the image's size if not given."""
    network: str | Sequence[str]
    """``user``, ``none``, ``tap:INTERFACE`` for a tap of this host, or the name of a network, with
    options such as ``lan:address=10.20.0.5``; several are a card each."""
    ports: Sequence[PublishedPort | str]
    """Published ports of the first card, such as ``8080:80`` and ``18500-18502:80-82``."""
    host_access: Sequence[int | str]
    """Ports of this host's loopback that the guest reaches at its gateway."""
    mounts: Sequence[Mount | str]
    """Directories of this host, as ``SOURCE:TARGET[:ro]``."""


class Adjustment(ResourceFields, ShapeFields, total=False):
    """The options of a machine that can be changed; what `ShapeFields` has needs another start."""

    balloon: int | str
    """Memory that its guest may use now, in bytes or as ``256M``."""


class MachineFields(ResourceFields, ShapeFields, total=False):
    """The options of a new machine."""

    data_disks: Sequence[Disk | str]
    """Additional disks: sizes or paths of files, as ``SIZE|PATH[:ro][:format=raw]``."""
    allow: Sequence[Allowed | str]
    """What alone the first card may reach outside of a network with a name."""
    egress: Literal["all", "none"]
    """Whether the first card may reach what is outside of a network with a name."""
    labels: Mapping[str, str]
    """Free texts, which ``cerne inspect`` shows."""
    isolation: Literal["standard", "strict"]
    """``strict``: it shares no core's threads and no memory with others."""
    identity: Literal["own", "kept"]
    """``kept``: machines made of it keep its machine-id and keys of SSH."""
    engine: Literal["auto", "native", "qemu"]
    """The engine that runs it; ``auto`` takes the faster one for this host."""
