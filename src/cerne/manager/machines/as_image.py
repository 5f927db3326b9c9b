"""Makes an image of a machine that does not run, without the machine's identity.

The machine's disk is not read on this host, since its guest wrote it. A helper machine boots on an
overlay of it, with the agent as its first process, and the agent removes there what is the
machine's own. The overlay, with all that is under it, is the disk of the image.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CerneError, GuestError, InputError, StateError
from cerne.manager.machines.context import MachineContext
from cerne.manager.machines.creation import creating, new_record
from cerne.manager.machines.ending import abandon
from cerne.manager.machines.helper import boots_on, start_helper
from cerne.manager.machines.operation import operation
from cerne.manager.machines.plan import wanted_engine
from cerne.manager.machines.telling import READY_TIMEOUT
from cerne.manager.store import IMAGE, State
from cerne.units import MIB

if TYPE_CHECKING:
    from cerne.engine.base import Engine, Instance
    from cerne.engine.plan import LaunchPlan
    from cerne.images import Image, Progress
    from cerne.images.parts import Parts
    from cerne.manager.store import Record
    from cerne.spec.machine import MachineSpec

_log = logging.getLogger(__name__)

_MEMORY = 256 * MIB
_FORGETTING_LIMIT = 120.0
_SHUTDOWN_LIMIT = 60.0
"""Seconds."""
_AGENT_FIRST = "init=/usr/sbin/cerne-agent"
_FORGET = """
wipe() {
  [ -f "$1" ] && [ ! -L "$1" ] || return 0
  head -c "$(wc -c < "$1")" /dev/zero | dd of="$1" conv=notrunc 2>/dev/null
}
for key in /etc/ssh/ssh_host_*_key /var/lib/systemd/random-seed \\
    /var/lib/systemd/credential.secret /var/lib/NetworkManager/secret_key; do
  wipe "$key"
done
sync
set -e
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /var/lib/systemd/random-seed
rm -f /var/lib/systemd/credential.secret /var/lib/NetworkManager/secret_key
rm -f /var/lib/dhcp/*.lease* /var/lib/dhclient/*.lease* /var/lib/dhcpcd/*.lease*
rm -f /var/lib/dhcpcd/duid /var/lib/NetworkManager/*.lease
rm -rf /var/log/journal/*
if [ -e /etc/machine-id ]; then : > /etc/machine-id; fi
if [ ! -L /var/lib/dbus/machine-id ]; then rm -f /var/lib/dbus/machine-id; fi
echo cerne > /etc/hostname
mkdir -p /var/lib/cerne
rm -f /var/lib/cerne/machine
echo image > /var/lib/cerne/machine
sync
fstrim / 2>/dev/null || true
"""
"""Removes what is one machine's own. Keys are overwritten first: a disk keeps what it deletes."""


def create_image(
    context: MachineContext, name: str, *, replace_other: bool, progress: Progress
) -> Image:
    """Make an image of this name of a machine's root disk (see `Machine.create_image`)."""
    images = context.manager.images()
    images.require_free(name, replace=replace_other)
    with operation(context, "image create") as record:
        _require_stopped(record)
        image = context.image()
        _require_disk(context, image)
        if context.spec.data_disks:
            _log.warning("the image has the root disk of %s alone", record.name)
        with images.making(f"making an image of {record.name}") as work:
            disk = work / "disk.qcow2"
            if image.agent:
                _forgotten(context, image, disk, progress)
            else:
                _as_it_is(context, disk, progress)
            faults.step("image disk made")
            progress(f"keeping {name}", 0, None)
            parts = _parts(image, disk, work)
            source = f"machine {record.name}"
            return images.add(name, parts, source=source, replace=replace_other)


def _require_stopped(record: Record) -> None:
    if record.state.live or record.state is State.SUSPENDED:
        wake = f"cerne wake {record.name}; " if record.state is State.SUSPENDED else ""
        raise StateError(
            f"{record.name} is {record.state}, and an image is made of a machine that is stopped",
            hint=f"{wake}cerne stop {record.name}; then the same command",
            machine=record.name,
        )


def _require_disk(context: MachineContext, image: Image) -> None:
    name = context.last.name
    if image.disk is None:
        raise InputError(
            f"{name} has no disk of which an image can be made: {image.name} runs from memory",
            hint="make the machine from an image with a disk, such as debian:12",
            machine=name,
        )


def _as_it_is(context: MachineContext, disk: Path, progress: Progress) -> None:
    """Copy the disk of a machine without an agent, with all that its guest wrote."""
    _log.warning(
        "%s has no agent, and the image keeps its identity: host name, machine-id and keys of SSH;"
        " remove them in the guest before you make an image of it",
        context.last.name,
    )
    from cerne.storage.overlay import create_overlay

    create_overlay(context.home.root_disk(context.id), "qcow2", disk)
    _merge(disk, progress)


def _forgotten(context: MachineContext, image: Image, disk: Path, progress: Progress) -> None:
    """Copy the disk of a machine without what is the machine's own."""
    from cerne.storage.overlay import create_overlay

    engine = context.manager.choose_engine(wanted_engine(context.spec, image))
    spec = _helper_spec(context, image)
    record = new_record(
        spec, context.last.image, image.digest, engine=engine.name, parent=IMAGE, incomplete=True
    )
    with creating(context.manager, [record], engine) as (helper,):
        own = helper.home.root_disk(helper.id)
        create_overlay(context.home.root_disk(context.id), "qcow2", own)
        _run_helper(helper, engine, progress)
        faults.step("image identity removed")
        _merge(own, progress)
        own.rename(disk)
        abandon(helper)


def _merge(disk: Path, progress: Progress) -> None:
    from cerne.storage.flatten import merge

    progress("copying the disk", 0, None)
    merge(disk, None, "")


def _helper_spec(context: MachineContext, image: Image) -> MachineSpec:
    """A machine with the root disk alone, which reaches nothing outside."""
    return context.spec.copied().changed(
        name=f"image-of-{context.id}",
        cpus=1,
        max_cpus=None,
        memory=max(_MEMORY, image.least_memory),
        balloon=None,
        resources={},
        nics=(),
        mounts=(),
        labels={},
        disks=tuple(disk for disk in context.spec.disks if disk.is_root),
    )


def _run_helper(helper: MachineContext, engine: Engine, progress: Progress) -> None:
    instance = start_helper(helper, engine, _agent_first(helper.plan()), IMAGE)
    agent = instance.agent()
    agent.wait_ready(READY_TIMEOUT, alive=boots_on(helper, instance, "booting a copy", progress))
    progress("removing the identity", 0, None)
    done = agent.run(["sh", "-c", _FORGET], timeout=_FORGETTING_LIMIT)
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise GuestError(f"removing the machine's identity failed in a copy of its guest: {said}")
    _shut_down(instance)


def _shut_down(instance: Instance) -> None:
    """End the helper's guest in order, so that its file system is whole."""
    # The guest may end before its answer is read.
    with suppress(CerneError):
        instance.agent().shutdown()
    if not instance.process.wait(_SHUTDOWN_LIMIT):
        raise GuestError(
            f"a copy of the guest did not shut down within {_SHUTDOWN_LIMIT:g} s",
            hint="try it again; a busy host takes longer",
        )


def _agent_first(plan: LaunchPlan) -> LaunchPlan:
    """The plan with the agent as the first process, if a kernel is booted: no service starts."""
    from cerne.engine.plan import KernelBoot

    if not isinstance(plan.boot, KernelBoot):
        return plan
    words = plan.boot.command_line.split()
    kept = [word for word in words if not word.startswith(("init=", "systemd."))]
    return replace(plan, boot=replace(plan.boot, command_line=" ".join([*kept, _AGENT_FIRST])))


def _parts(image: Image, disk: Path, work: Path) -> Parts:
    from cerne.images.parts import Parts
    from cerne.storage.formats import require_self_contained

    kernel = initrd = None
    if image.boot is not None:
        kernel = shutil.copyfile(image.boot.kernel, work / "kernel")
        if image.boot.initrd is not None:
            initrd = shutil.copyfile(image.boot.initrd, work / "initrd")
    return Parts(
        kernel,
        initrd,
        image.boot.command_line if image.boot else "",
        disk,
        "qcow2",
        require_self_contained(disk).virtual_size or 0,
        agent=image.agent,
        least_memory=image.least_memory,
        init=image.init,
    )
