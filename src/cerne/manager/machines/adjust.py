"""Changing a machine: its memory, its resources, and, while it does not run, what it is made of.

Its specification says so from then on, so that its next start and its forks have it too. What a
machine that runs takes takes effect at once; all else is refused until it is stopped.
"""

from __future__ import annotations

import contextlib
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
)
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.cpus import add_cpus, require_growth, settle_cpus
from cerne.manager.machines.disks import root_size, settle_disks
from cerne.manager.machines.operation import operation
from cerne.manager.machines.states import require_state
from cerne.manager.networks import ensure_networks
from cerne.manager.on_host import check_image, found_spec
from cerne.manager.store import State
from cerne.units import format_size

if TYPE_CHECKING:
    from cerne.manager.store import Record
    from cerne.manager.store.promises import Claim
    from cerne.spec.machine import MachineSpec

_BALLOON = "balloon"
_CPUS = "cpus"
_DISK = "disk"
_OPTIONS = {"ports": "publish", "mounts": "mount", "max_cpus": "max-cpus"}
"""The options of values that have another name."""
_AT_START = ("max_cpus", "memory", _DISK, "network", "ports", "mounts")
"""What a machine takes when it starts."""
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
            "no value to change was given", hint="give one: cerne set NAME --balloon 256M"
        )
    with operation(context, "set") as record:
        require_state(record, *_CHANGEABLE)
        _require_start(record, given)
        wanted = given.get(_CPUS)
        if isinstance(wanted, int) and (record.state.live or record.state is State.SUSPENDED):
            require_growth(context, record, wanted)
        former, spec = context.spec, context.spec.changed(**given)
        check_host(context.manager, spec)
        ensure_networks(context.manager, spec.nics)
        if not record.state.live:
            _define(context, record, spec, given)
            return
        # It keeps both what it had and what it is to have until its process has the latter.
        engine = context.engine()
        before, after = (claim_to_run(context.home, each, engine) for each in (former, spec))
        fitting(context.manager, lambda: context.store.promise(record, growing(before, after)))
        faults.step("promised")
        try:
            _apply(context, record, spec, given)
            _note(context, record, spec, _words(given), after)
        except BaseException:
            # What is promised too much here is found by the next command that needs it.
            with contextlib.suppress(CerneError):
                context.store.promise(record, before)
            if _CPUS in given:
                with contextlib.suppress(CerneError):
                    settle_cpus(context, record)
            raise


def _require_start(record: Record, given: Mapping[str, object]) -> None:
    """Refuse to change what a machine that has a process, or saved memory, is made of."""
    found = [f"--{_OPTIONS.get(name, name)}" for name in _AT_START if name in given]
    if not found or not (record.state.live or record.state is State.SUSPENDED):
        return
    suspended = record.state is State.SUSPENDED
    why = "its saved memory has the former ones" if suspended else "its process has the former ones"
    wake = f"cerne wake {record.name}; " if suspended else ""
    raise StateError(
        f"{record.name} is {record.state}, and takes {', '.join(found)} only while it is stopped:"
        f" {why}",
        hint=f"{wake}cerne stop {record.name}; then the same command; cerne start {record.name}",
        machine=record.name,
    )


def _define(
    context: MachineContext, record: Record, spec: MachineSpec, given: Mapping[str, object]
) -> None:
    """Change a machine that does not run: its specification, and the size of its root disk."""
    former, claim = context.spec, None
    if "mounts" in given:
        spec = found_spec(spec)
    if given.keys() & {"memory", _DISK}:
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
) -> None:
    """Change a process that runs: all of it, or nothing."""
    former = context.spec
    instance = context.instance(record)
    if _CPUS in given:
        add_cpus(context, record, spec.cpus)
    if given.keys() == {_CPUS}:
        return
    # A value that it has is given again: a command that gave it another may have been killed.
    balloon = spec.balloon if _BALLOON in given else None
    if balloon is not None:
        instance.set_memory(balloon)
    if given.keys() == {_BALLOON}:
        return
    try:
        instance.set_resources(spec.resources)
        faults.step("resources given")
    except BaseException:
        # Some of them may have been given.
        with contextlib.suppress(CerneError):
            instance.set_resources(former.resources)
        if balloon is not None:
            with contextlib.suppress(CerneError):
                instance.set_memory(record.memory if former.balloon is None else former.balloon)
        raise
