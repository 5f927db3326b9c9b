"""Changing a machine: its memory, its resources, and, while it does not run, what it is made of.

Its specification says so from then on, so that its next start and its forks have it too. A machine
that runs takes memory, a balloon and resources at once, and all else only while it is stopped.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CerneError, InputError, StateError
from cerne.manager.capacity import (
    check_host,
    claim_of_disks,
    claim_to_run,
    fitting,
    growing,
    require_host_cpus,
)
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.cpus import add_cpus, require_growth, settle_cpus
from cerne.manager.machines.disks import root_size, settle_disks
from cerne.manager.machines.operation import operation
from cerne.manager.machines.resources import RESIZING, note_memory
from cerne.manager.machines.states import require_state
from cerne.manager.networks import ensure_networks
from cerne.manager.on_host import check_image, found_spec
from cerne.manager.store import State
from cerne.spec.network import is_named
from cerne.spec.part import require_cpus
from cerne.units import format_size

if TYPE_CHECKING:
    from cerne.engine.base import Instance
    from cerne.manager.store import Record
    from cerne.manager.store.promises import Claim
    from cerne.spec.machine import MachineSpec

_log = logging.getLogger(__name__)

_BALLOON = "balloon"
_CPUS = "cpus"
_DISK = "disk"
_OPTIONS = {"ports": "publish", "mounts": "mount"}
"""The options of values that have another name."""
_MEMORY = "memory"
_AT_START = (
    *("max_cpus", _DISK, "network", "ports", "host_access", "mounts"),
    *("memory_hugepages", "memory_merge"),
)
"""What a machine takes only when it starts."""
_AT_ONCE = {
    "host_access": "at once: cerne network set {network} {name} --host-access PORT",
    "ports": "at once: cerne publish add {name} HOST:GUEST",
}
"""The commands that change a card on a network with a name while its machine runs."""
_CHANGEABLE = (
    State.RUNNING,
    State.PAUSED,
    State.DEFINED,
    State.STOPPED,
    State.FAILED,
    State.SUSPENDED,
)


def adjust(context: MachineContext, asked: Mapping[str, object]) -> None:
    """Change the values of these names (see `Machine.adjust`)."""
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        raise InputError(
            "no value to change was given",
            hint=f"give one: cerne set {context.last.name} --cpu-limit 50%",
        )
    with operation(context, "set") as record:
        require_state(record, *_CHANGEABLE)
        wanted = given.get(_CPUS)
        if isinstance(wanted, int):
            require_cpus(wanted)
            require_host_cpus(record.name, wanted)
        if isinstance(wanted, int) and (record.state.live or record.state is State.SUSPENDED):
            _require_start(context, record, given)
            require_growth(context, record, wanted)
            spec = context.spec.changed(**given)
        else:
            # What is wrong in any state is said first.
            spec = context.spec.changed(**given)
            _require_start(context, record, given)
        check_host(context.manager, spec)
        ensure_networks(context.manager, spec.nics)
        if not record.state.live:
            _define(context, record, spec, given)
            return
        _change_running(context, record, spec, given)


def _change_running(
    context: MachineContext, record: Record, spec: MachineSpec, given: Mapping[str, object]
) -> None:
    # It keeps both what it had and what it is to have until its process has the latter.
    engine, former = context.engine(), context.spec
    before, after = (claim_to_run(context.home, each, engine) for each in (former, spec))
    fitting(context.manager, lambda: context.store.promise(record, growing(before, after)))
    faults.step("promised")
    if spec.memory != former.memory:
        record = context.store.begin(record, RESIZING)
    try:
        spec = _apply(context, record, spec, given)
        after = claim_to_run(context.home, spec, engine)
        _note(context, record, spec, _words(given), after)
    except BaseException:
        # What is promised too much here is found by the next command that needs it.
        with contextlib.suppress(CerneError):
            if record.doing:
                note_memory(context, record, context.instance(record))
            claim = claim_to_run(context.home, context.spec, engine)
            context.store.promise(record, claim)
        if _CPUS in given:
            with contextlib.suppress(CerneError):
                settle_cpus(context, record)
        raise


def _require_start(context: MachineContext, record: Record, given: Mapping[str, object]) -> None:
    """Refuse what a machine does not take that has a process, or saved memory."""
    at_start = [name for name in _AT_START if name in given]
    if _MEMORY in given and record.state is not State.RUNNING:
        at_start.append(_MEMORY)
    if not at_start or not (record.state.live or record.state is State.SUSPENDED):
        return
    if at_start == [_MEMORY] and record.state is State.PAUSED:
        raise StateError(
            f"{record.name} is paused, so its guest plugs no memory",
            hint=f"cerne resume {record.name}; then the same command",
            machine=record.name,
        )
    suspended = record.state is State.SUSPENDED
    why = "its saved memory has the former ones" if suspended else "its process has the former ones"
    wake = f"cerne wake {record.name}; " if suspended else ""
    options = ", ".join(f"--{_OPTIONS.get(name, name).replace('_', '-')}" for name in at_start)
    stopped = f"{wake}cerne stop {record.name}; then the same command; cerne start {record.name}"
    network = context.spec.network
    if record.state.live and is_named(network) and at_start[0] in _AT_ONCE:
        stopped = f"{_AT_ONCE[at_start[0]].format(network=network, name=record.name)}; or {stopped}"
    raise StateError(
        f"{record.name} is {record.state}, and takes {options} only while it is stopped: {why}",
        hint=stopped,
        machine=record.name,
    )


def _define(
    context: MachineContext, record: Record, spec: MachineSpec, given: Mapping[str, object]
) -> None:
    """Change a machine that does not run: its specification, and the size of its root disk."""
    former, claim = context.spec, None
    if "mounts" in given:
        spec = found_spec(spec)
    if given.keys() & {_MEMORY, _DISK}:
        check_image(spec, context.image())
    if _DISK in given:
        _require_larger(context, spec)
        claim = claim_of_disks(context.home, spec, context.image())
        fitting(context.manager, lambda: context.store.promise(record, claim))
    _note(context, record, spec, _words(given), claim)
    faults.step("changed")
    try:
        # A disk grows here, or, if this is killed, at the next start.
        settle_disks(context)
    except BaseException:
        with contextlib.suppress(CerneError):
            before = claim and claim_of_disks(context.home, former, context.image())
            _note(context, record, former, f"not {_words(given)}", before)
        raise


def _words(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in given.items())


def _require_larger(context: MachineContext, spec: MachineSpec) -> None:
    present = root_size(context)
    if spec.root_size is not None and spec.root_size < present:
        raise InputError(
            f"the root disk of {spec.name} has {format_size(present)}, and does not shrink to"
            f" {format_size(spec.root_size)}: its guest may have data there",
            hint=f"give at least --disk {format_size(present)}, or make another machine",
        )


def _note(
    context: MachineContext,
    record: Record,
    spec: MachineSpec,
    words: str,
    claim: Claim | None = None,
) -> None:
    shape = (spec.cpus, spec.memory)
    context.store.change_spec(record, spec.model_dump_json(), words, claim, shape)
    context.last = context.store.get(context.id)


def _apply(
    context: MachineContext, record: Record, spec: MachineSpec, given: Mapping[str, object]
) -> MachineSpec:
    """Change a process that runs: all of it, or nothing; what its specification is then."""
    former, instance = context.spec, context.instance(record)
    if _CPUS in given:
        add_cpus(context, record, spec.cpus)
    if given.keys() == {_CPUS}:
        return spec
    # A value that it has is given again: a command that gave it another may have been killed.
    if _MEMORY in given:
        spec = _resized(context, instance, spec)
    try:
        if _BALLOON in given or (spec.balloon is not None and _MEMORY in given):
            instance.set_memory(spec.memory if spec.balloon is None else spec.balloon)
        if given.keys() - {_BALLOON, _MEMORY}:
            instance.set_resources(spec.resources)
            faults.step("resources given")
    except BaseException:
        # Some of them may have been given.
        with contextlib.suppress(CerneError):
            if given.keys() - {_BALLOON, _MEMORY}:
                instance.set_resources(former.resources)
        with contextlib.suppress(CerneError):
            if _BALLOON in given:
                instance.set_memory(former.memory if former.balloon is None else former.balloon)
        with contextlib.suppress(CerneError):
            if spec.memory != former.memory:
                instance.resize_memory(former.memory)
        raise
    return spec


def _resized(context: MachineContext, instance: Instance, spec: MachineSpec) -> MachineSpec:
    """Have the guest plug or unplug memory; the specification with what it has at the end."""
    name, former = spec.name, context.spec.memory
    faults.step("resizing")
    has = instance.resize_memory(spec.memory)
    faults.step("resized")
    if has < spec.memory:
        _log.warning(
            "the guest of %s has plugged %s of its %s so far, and may continue",
            *(name, format_size(has), format_size(spec.memory)),
        )
    elif has > spec.memory:
        _log.warning(
            "the guest of %s gave back %s, and keeps the rest, which it uses: it has %s",
            *(name, format_size(former - has), format_size(has)),
        )
        return spec.changed(memory=has)
    return spec
