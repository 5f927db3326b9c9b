"""Taking a machine back to a snapshot, and making others of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cerne import faults
from cerne.engine.plan import TapNic, UserNic
from cerne.errors import InputError, NotFoundError, StateError
from cerne.manager.capacity import claim_of_disks
from cerne.manager.lock import held
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.creation import creating, new_record, spec_of_child
from cerne.manager.machines.disks import lay
from cerne.manager.machines.ending import kill
from cerne.manager.machines.launch import launch
from cerne.manager.machines.operation import operation
from cerne.manager.machines.readiness import await_ready, introduce
from cerne.manager.machines.remove import undo
from cerne.manager.machines.start import start
from cerne.manager.machines.telling import ready_timeout, tell
from cerne.manager.networks import ensure_networks
from cerne.manager.recovery import discard
from cerne.manager.snapshots.kept import KeptSnapshot
from cerne.manager.store import Record
from cerne.spec.network import NetworkKind, parse_network

if TYPE_CHECKING:
    from cerne.engine.plan import LaunchPlan
    from cerne.images import Progress
    from cerne.spec.machine import MachineSpec
    from cerne.spec.ports import PublishedPort


def restore(kept: KeptSnapshot, progress: Progress) -> Record:
    """Take the machine that it is of back to it (see `Snapshot.restore`)."""
    record = kept.context.store.find_id(kept.manifest.machine)
    if record is None:
        removed = f"{kept.manifest.spec.name}, the machine of {kept.name}, does not exist any more"
        imported = f"{kept.name} was imported, and its machine is on another host"
        raise NotFoundError(
            removed if kept.manifest.machine else imported,
            hint=f"make another machine from it: cerne snapshot restore {kept.name} --as NAME",
        )
    context = MachineContext(kept.context, record)
    with kept.held("restore"), operation(context, "restore") as present:
        _require_same_devices(kept, context)
        engine = kept.engine()
        progress(f"restoring {present.name}", 0, None)
        # What cannot be is refused before the machine that runs is ended; what it has is its.
        engine.require(_without_what_it_has(context.plan(kept.memory)))
        if present.state.live:
            context.last = kill(context, present, f"killed, to go back to {kept.name}")
        launch(context, engine, kept.memory, kept.layers)
    if kept.memory is None:
        await_ready(context, ready_timeout(context.image()), progress)
    else:
        tell(context)
    collect(context.manager)
    return context.last


def restore_as(
    kept: KeptSnapshot,
    name: str,
    ports: Sequence[PublishedPort | str],
    network: str | None,
    progress: Progress,
) -> Record:
    """Make another machine of it (see `Snapshot.restore_as`)."""
    manifest = kept.manifest
    if not manifest.machine and network is None:
        _refuse_strange_network(kept)
    if manifest.has_memory and manifest.spec.strict:
        raise InputError(
            f"{kept.name} has the memory of a machine with strict isolation, which would be shared",
            hint="make a snapshot with --no-memory, and another machine from that",
        )
    spec = spec_of_child(manifest.spec, name, ports, network)
    ensure_networks(kept.context, spec.nics)
    record = new_record(
        spec,
        manifest.image,
        manifest.digest,
        parent=manifest.machine or kept.id,
        incomplete=manifest.has_memory,
    )
    progress(f"restoring {name}", 0, None)
    with kept.held("restore"):
        if manifest.has_memory:
            return _continued(kept, record)
        context = MachineContext(kept.context, _defined(kept, record))
    if not context.image().agent:
        from cerne.manager.machines.identity import warn_without_agent

        warn_without_agent(context)
    try:
        start(context, None, cold=False, progress=progress)
    except BaseException as error:
        undo(context, error)
        raise
    return context.last


def _continued(kept: KeptSnapshot, record: Record) -> Record:
    """Another machine, gone on from the memory."""
    engine = kept.engine()
    engine.require(MachineContext(kept.context, record).plan(kept.memory))
    with creating(kept.context, [record], engine) as (context,):
        context.store.refer_to_layers([context.id], kept.layer_ids)
        lay(context, kept.layers)
        faults.step("children made")
        launch(context, engine, kept.memory)
        introduce(context)
        return context.last


def _defined(kept: KeptSnapshot, record: Record) -> Record:
    """Another machine with the disk, not started."""
    context = MachineContext(kept.context, record)
    with held(context.lock_path, "create", record.name):
        try:
            context.directory.mkdir(mode=0o700)
            lay(context, kept.layers)
            claim = claim_of_disks(kept.context.home, context.spec, context.image())
            context.store.add(record, kept.layer_ids, claim)
        except BaseException:
            discard(context.directory)
            context.lock_path.unlink(missing_ok=True)
            raise
    return record


def _require_same_devices(kept: KeptSnapshot, context: MachineContext) -> None:
    then, now = kept.manifest.spec, context.spec
    _require_same_shape(kept, then, now)
    if (then.data_disks, then.added_nics) != (now.data_disks, now.added_nics):
        raise StateError(
            f"{context.last.name} has other disks or network cards than in {kept.name}",
            hint=f"make another machine from it: cerne snapshot restore {kept.name} --as NAME",
            machine=context.last.name,
        )


def _require_same_shape(kept: KeptSnapshot, then: MachineSpec, now: MachineSpec) -> None:
    """Refuse a machine that was changed since, so that the saved state or disk does not fit it."""
    changed = []
    if kept.memory is not None:
        kinds = [parse_network(each.network).kind for each in (then, now)]
        differ = {
            "CPUs": then.cpus != now.cpus,
            "memory": then.memory != now.memory,
            "mounts": then.mounts != now.mounts,
            "network": kinds[0] is not kinds[1],
        }
        changed = [what for what, other in differ.items() if other]
    if then.root_size != now.root_size:
        changed.append("size of its root disk")
    if changed:
        raise StateError(
            f"{now.name} has another {' and '.join(changed)} than in {kept.name}",
            hint=f"make another machine from it: cerne snapshot restore {kept.name} --as NAME; or"
            f" change {now.name} back with cerne set",
            machine=now.name,
        )


def _refuse_strange_network(kept: KeptSnapshot) -> None:
    """Refuse to connect what was imported to something of this host that bears the same name."""
    known = {
        NetworkKind.TAP: ("a tap", "tap:INTERFACE"),
        NetworkKind.NAMED: ("a network", "NETWORK"),
    }
    found = known.get(parse_network(kept.manifest.spec.network).kind)
    if found is not None:
        what, option = found
        raise InputError(
            f"{kept.name} was imported, and its machine had {what} of another host",
            hint=f"give one of this host: cerne snapshot restore {kept.name} --as NAME"
            f" --network {option}",
        )


def _without_what_it_has(plan: LaunchPlan) -> LaunchPlan:
    """The plan without the ports and the taps of this host that are a machine's alone."""
    cards = [
        replace(nic, forwards=()) if isinstance(nic, UserNic) else nic
        for nic in plan.nics
        if not isinstance(nic, TapNic)
    ]
    return replace(plan, nics=tuple(cards))
