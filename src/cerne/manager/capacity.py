"""The ledger: what this host has for machines, what is promised to them, and what is free.

What the host has is measured each time (`cerne.host.supply`), less a reserve for the host itself.
What is promised is in the store (`cerne.manager.store.promises`). If something does not fit,
machines whose processes have ended are looked for first: whether a machine runs is told by its
process alone. What other homes of this host have promised counts too (`cerne.host.ledger`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from cerne.errors import CapacityError, CerneError, InputError
from cerne.host.cell import require_limits
from cerne.host.placement import Topology, topology
from cerne.host.side_channels import require_own_cores
from cerne.host.supply import (
    Hugepages,
    hugepages,
    require_hugepages,
    require_merging,
    supplied_cpus,
    supplied_memory,
)
from cerne.manager.lock import held, is_held
from cerne.manager.machines.context import MachineContext, ManagerContext
from cerne.manager.machines.recovery import noticed
from cerne.manager.store.promises import (
    Amounts,
    Claim,
    Promise,
    Resource,
    Supply,
    promised_elsewhere,
)
from cerne.units import MIB, counted, format_size

if TYPE_CHECKING:
    from cerne.engine.base import Engine
    from cerne.host.ledger import Published
    from cerne.images import Image
    from cerne.manager.home import Home
    from cerne.manager.store import Record
    from cerne.spec.machine import MachineSpec

T = TypeVar("T")

_RESERVED_PART = 20
_LEAST_RESERVE = 256 * MIB
LARGEST_RATIO = 1000.0


@dataclass(frozen=True, slots=True)
class Account:
    """One resource of the host. Amounts are thousandths of a CPU, or bytes."""

    resource: Resource
    has: int
    reserve: int
    """What is kept for the host itself."""
    promised: int
    elsewhere: int
    """What other homes of this host have promised."""
    ratio: float
    """How much may be promised, as a part of what there is less the reserve."""

    @property
    def free(self) -> int:
        """What can still be promised."""
        return max(0, int((self.has - self.reserve) * self.ratio) - self.promised - self.elsewhere)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The whole ledger."""

    accounts: tuple[Account, ...]
    promises: tuple[Promise, ...]
    elsewhere: tuple[Published, ...]
    """What other homes have promised, of which those of other users count for a half at most."""
    alone: str
    """Why this home and others do not see each other's promises; empty if they do."""
    hugepages: tuple[Hugepages, ...]
    topology: Topology
    """The CPUs and NUMA nodes to which machines may be pinned."""


def capacity(manager: ManagerContext) -> Capacity:
    """What this host has, what is promised and what is free, now."""
    _count_again(manager)
    promises = manager.store.promises()
    ratios = manager.store.ratios()
    elsewhere = manager.store.elsewhere()
    accounts = tuple(
        Account(
            resource,
            has,
            _reserve(resource, has),
            sum(each.amount for each in promises if each.resource is resource),
            promised_elsewhere(
                resource, elsewhere, int(_less_reserve(resource, has) * ratios[resource])
            ),
            ratios[resource],
        )
        for resource in Resource
        for has in (_has(manager.home, resource).whole(),)
    )
    return Capacity(
        accounts,
        tuple(promises),
        tuple(elsewhere),
        manager.store.alone,
        hugepages(),
        topology(),
    )


def set_overcommit(manager: ManagerContext, ratios: Mapping[str, float]) -> None:
    """Change how much of each resource may be promised, as a part of what there is.

    Raises:
        InputError: there is no such resource, or a ratio is not valid.
    """
    for name, ratio in ratios.items():
        if name not in [*Resource]:
            raise InputError(
                f"there is no resource {name!r}", hint=f"take one of {', '.join(Resource)}"
            )
        if not 0 < ratio <= LARGEST_RATIO:
            raise InputError(
                f"{ratio:g} is not a ratio", hint=f"give more than 0 and at most {LARGEST_RATIO:g}"
            )
    manager.store.set_ratios({Resource(name): ratio for name, ratio in ratios.items()})


def needs_of(spec: MachineSpec, overhead: int) -> Amounts:
    """What a machine needs while it runs, with the overhead of its processes."""
    resources = spec.resources
    cpus = resources.cpu.guarantee or 0
    guaranteed = resources.memory.guarantee
    memory = spec.memory if guaranteed is None else guaranteed
    if resources.memory.hugepages:
        # The kernel itself promises hugepages, when the process maps them.
        memory = 0
    return {Resource.CPU: int(cpus * 1000), Resource.MEMORY: memory + overhead}


def claim_to_run(home: Home, spec: MachineSpec, engine: Engine) -> Claim:
    """What a machine claims while it runs on an engine."""
    return _claim(home, needs_of(spec, engine.overhead))


def claim_of_disks(home: Home, spec: MachineSpec, image: Image) -> Claim:
    """What the own disks of a machine claim as long as it exists."""
    return _claim(home, _disks_of(spec, image))


def claims_of_new(
    home: Home, machines: Iterable[MachineContext], engine: Engine
) -> list[tuple[Record, Claim]]:
    """What machines claim that are made and start at once."""
    supply = {each: _supply(home, each) for each in Resource}
    return [
        (
            each.last,
            Claim(
                {**needs_of(each.spec, engine.overhead), **_disks_of(each.spec, each.image())},
                supply,
            ),
        )
        for each in machines
    ]


def _disks_of(spec: MachineSpec, image: Image) -> Amounts:
    root = 0 if image.disk is None else spec.root_size or image.disk.virtual_size
    return {Resource.DISK: root + _own_size(spec)}


def _own_size(spec: MachineSpec) -> int:
    return sum(disk.size or 0 for disk in spec.data_disks if disk.own)


def claim_with_disks(context: MachineContext, spec: MachineSpec) -> Claim:
    """What the disks of a machine claim with this specification in place of its present one."""
    more = _own_size(spec) - _own_size(context.spec)
    if not more:
        return Claim({}, {})
    promised = context.store.promised_to(context.last).get(Resource.DISK, 0)
    return _claim(context.home, {Resource.DISK: max(0, promised + more)})


def growing(one: Claim, other: Claim) -> Claim:
    """The claim of a machine while its needs change: the larger amount of each resource."""
    needs = {each: max(one.needs[each], other.needs[each]) for each in one.needs}
    return Claim(needs, {**one.supply, **other.supply})


def fitting(manager: ManagerContext, claim: Callable[[], T]) -> T:
    """Make a claim, a second time after machines that have ended were looked for.

    Raises:
        CapacityError: the host has not so much.
    """
    try:
        return claim()
    except CapacityError:
        _count_again(manager)
        return claim()


def require_room(manager: ManagerContext, spec: MachineSpec, count: int) -> None:
    """Refuse so many machines of a kind if they do not fit now.

    Raises:
        CapacityError: they do not.
    """
    needs = {each: amount * count for each, amount in needs_of(spec, 0).items()}
    claim = _claim(manager.home, needs)
    fitting(manager, lambda: manager.store.require_free(spec.name, claim))


def require_host_cpus(name: str, wanted: int) -> None:
    """Refuse more CPUs for a machine than this host has.

    Raises:
        CapacityError: the host has fewer.
    """
    cpus = len(os.sched_getaffinity(0))
    if wanted > cpus:
        raise CapacityError(
            f"{name} needs {counted(wanted, 'CPU')}, and this host has {cpus}",
            hint=f"ask for at most --cpus {cpus}",
            machine=name,
        )


def check_host(manager: ManagerContext, spec: MachineSpec) -> None:
    """Refuse a machine that this host could not run even without other machines.

    Raises:
        CapacityError: more CPUs or memory than the host has, or may promise.
        InputError: a limit that its engine does not have.
        HostError: limits, where this host does not let this user set them; strict isolation,
            where it does not have it.
    """
    require_limits(spec.resources)
    if spec.resources.memory.hugepages:
        require_hugepages(spec.name, spec.memory, free=False)
    if spec.resources.memory.merge:
        require_merging()
    if spec.strict:
        require_own_cores()
    require_host_cpus(spec.name, spec.cpus)
    engine = manager.choose_engine(spec.engine)
    network = spec.resources.network
    if (network.receive or network.send) and not engine.capabilities.network_rate:
        raise InputError(
            f"{spec.name} has a network rate, and the engine {engine.name} limits no network card",
            hint="make it with --engine native, or without a rate: cerne set NAME"
            " --network-rate none",
        )
    ratio = manager.store.ratios()[Resource.MEMORY]
    limit = int(_supply(manager.home, Resource.MEMORY).whole() * ratio) - engine.overhead
    if spec.memory > limit and not spec.resources.memory.hugepages:
        raise CapacityError(
            f"{spec.name} needs {format_size(spec.memory)} of memory, and this host can give"
            f" {format_size(max(0, limit))}",
            hint=f"ask for at most --memory {max(0, limit) // MIB}M",
            machine=spec.name,
        )


def _count_again(manager: ManagerContext) -> None:
    """Put the promises right of machines whose command or process has ended."""
    for record in manager.store.live():
        context = MachineContext(manager, record)
        if is_held(context.lock_path):
            continue
        with contextlib.suppress(CerneError):
            present = noticed(context)
            if present.state.live:
                _correct(context)


def _correct(context: MachineContext) -> None:
    """Write what a machine that runs needs: a command that changed it may have been killed."""
    with held(context.lock_path, "recovery", context.last.name, patience=0):
        record = context.store.get(context.id)
        needs = needs_of(context.spec, context.engine().overhead)
        promised = context.store.promised_to(record)
        if any(promised.get(resource, 0) != amount for resource, amount in needs.items()):
            context.store.correct_promises(record, needs)
        else:
            context.store.publish(record)


def _claim(home: Home, needs: Amounts) -> Claim:
    return Claim(needs, {each: _supply(home, each) for each, amount in needs.items() if amount})


def _supply(home: Home, resource: Resource) -> Supply:
    """What there is of a resource less the reserve."""
    has = _has(home, resource)
    least, measure = _less_reserve(resource, has.least), has.measure
    if measure is None:
        return Supply(least)
    return Supply(least, lambda: _less_reserve(resource, measure()))


def _less_reserve(resource: Resource, has: int) -> int:
    return max(0, has - _reserve(resource, has))


def memory_reserve() -> int:
    """Bytes of memory that are kept for the host itself."""
    return _reserve(Resource.MEMORY, supplied_memory())


def _has(home: Home, resource: Resource) -> Supply:
    match resource:
        case Resource.CPU:
            return Supply(int(supplied_cpus() * 1000))
        case Resource.MEMORY:
            return Supply(supplied_memory())
        case Resource.DISK:
            status = os.statvfs(home.machines)
            free = status.f_bavail * status.f_frsize
            # It takes long to look at all disks, and is of use only if the disk is nearly full.
            return Supply(free, lambda: free + sum(_taken(home)))


def _reserve(resource: Resource, has: int) -> int:
    match resource:
        case Resource.CPU:
            # The kernel shares CPU time with the host's own processes by weight.
            return 0
        case Resource.MEMORY:
            return min(has, max(_LEAST_RESERVE, has // _RESERVED_PART))
        case Resource.DISK:
            return has // _RESERVED_PART


def _taken(home: Home) -> Iterator[int]:
    """Bytes that the disks of machines, and the layers under them, take already."""
    for directory in (home.layers, *os.scandir(home.machines)):
        # A machine may be removed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            for file in os.scandir(directory):
                if file.name.endswith(".qcow2"):
                    yield file.stat(follow_symlinks=False).st_blocks * 512
