"""Templates: images booted to readiness once, from which machines then start at once.

A template is what an engine saved of a machine that nobody has used yet: memory, devices, and its
disk as a layer. A digest over all that matters names it: a difference makes another one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import DamagedError
from cerne.images.files import storage_errors, sync_directory
from cerne.manager.background import run_later
from cerne.manager.lock import held, is_held
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext, ManagerContext
from cerne.manager.machines.creation import creating, new_record
from cerne.manager.machines.ending import KILL_TIMEOUT, abandon
from cerne.manager.machines.helper import boots_on, start_helper
from cerne.manager.machines.telling import complete_boot
from cerne.manager.recovery import discard
from cerne.manager.store import TEMPLATE
from cerne.manager.warm.template_files import Template, read_template, templates_of, write_template
from cerne.spec.network import NetworkKind, is_named, parse_network

if TYPE_CHECKING:
    from cerne.engine.base import Engine
    from cerne.images import Image, Progress
    from cerne.spec.machine import MachineSpec

VARIABLE = "CERNE_TEMPLATES"
"""The environment variable that, being ``never``, has every machine boot."""

_FORMAT = 1
_KIND = {"version", "name", "image", "cpus", "max_cpus", "memory", "disks", "engine"}
"""The fields of a specification that tell one template from another."""

_log = logging.getLogger(__name__)


class Templates:
    """The templates of one home."""

    def __init__(self, manager: ManagerContext) -> None:
        self._context = manager
        self._home = manager.home

    def find(self, spec: MachineSpec, image: Image, engine: Engine) -> Template | None:
        """The template for such a machine, if there is one and templates are not turned off."""
        if not may_have_template(spec, image):
            return None
        try:
            return read_template(self._home.template(_key(spec, image, engine)))
        except DamagedError:
            return None

    def make(
        self,
        spec: MachineSpec,
        image: Image,
        engine: Engine,
        timeout: float,
        progress: Progress,
    ) -> Template:
        """The template for such a machine, made if there is none; others that it replaces go.

        Raises:
            CerneError: starting or saving the machine failed; nothing of it is left.
        """
        key = _key(spec, image, engine)
        directory = self._home.template(key)
        with held(self._home.template_lock(key), "warm", spec.image):
            try:
                return read_template(directory)
            except DamagedError:
                discard(directory)
            progress(f"booting {spec.image} once", 0, None)
            template = self._make(spec, image, engine, directory, timeout, progress)
        for other in templates_of(self._home):
            if other.family == template.family and other.directory != directory:
                self.remove(other)
        collect(self._context)
        return template

    def make_later(self, spec: MachineSpec) -> None:
        """Have a process of its own make the template for such a machine, if it can have one."""
        # What else it says is each machine's own, and not for the eyes of those who list processes.
        kind = spec.model_dump_json(include=_KIND)
        run_later(self._home, "warm", kind, self._home.templates / "warm.log")

    def remove(self, template: Template) -> None:
        """Remove one; machines that started from it keep what they have of it."""
        _log.debug("removing the template %s", template.directory)
        discard(template.directory)

    def remove_of(self, digest: str) -> None:
        """Remove those of an image."""
        for template in templates_of(self._home):
            if template.image == digest:
                self.remove(template)

    def sweep(self) -> None:
        """Remove what was left by commands that were killed while they made one."""
        for directory in self._home.templates.glob(".making-*"):
            if not is_held(self._home.template_lock(directory.name.removeprefix(".making-"))):
                discard(directory)

    def _make(
        self,
        spec: MachineSpec,
        image: Image,
        engine: Engine,
        directory: Path,
        timeout: float,
        progress: Progress,
    ) -> Template:
        making = directory.with_name(f".making-{directory.name}")
        discard(making)
        name = f"template-{directory.name[:8]}"
        record = new_record(
            # What can be changed while a machine runs is each machine's own.
            # What a card may reach is each machine's own too.
            spec.copied().changed(name=name, balloon=None, resources={}),
            spec.image,
            image.digest,
            engine=engine.name,
            parent=TEMPLATE,
            incomplete=True,
        )
        with (
            storage_errors(f"making a template of {spec.image}", self._home.data),
            creating(self._context, [record], engine) as (context,),
        ):
            try:
                making.mkdir(mode=0o700)
                _boot_and_save(context, image, engine, making, timeout, progress)
                # No layer is collected before the template that names it is there.
                with context.layers.locked():
                    layer = _keep_disk(context, image)
                    family = _family(spec, image, engine)
                    template = Template(directory, image.digest, family, layer)
                    write_template(template, making)
                    faults.step("template saved")
                    making.rename(directory)
                    sync_directory(directory.parent)
                    if layer:
                        context.store.add_layers({layer: None})
            except BaseException:
                discard(making)
                raise
            faults.step("template kept")
            abandon(context)
        return template


_TEMPLATE_NETWORKS = (NetworkKind.USER, NetworkKind.NAMED)


def may_have_template(spec: MachineSpec, image: Image) -> bool:
    """Whether such a machine can start from a template, and the environment lets it."""
    # What is mounted from the host cannot be saved, other machines' disks are not in a template, a
    # tap of the host is one machine's, and without an agent nobody tells a guest who it is.
    # A template's memory is shared, which a strict machine forbids.
    # Hugepages are not copied when they are written to.
    shared = spec.strict or spec.resources.memory.hugepages
    alone = not (shared or spec.mounts or spec.data_disks or spec.added_nics)
    alone = alone and parse_network(spec.network).kind in _TEMPLATE_NETWORKS
    return image.agent and alone and os.environ.get(VARIABLE) != "never"


def _boot_and_save(
    context: MachineContext,
    image: Image,
    engine: Engine,
    directory: Path,
    timeout: float,
    progress: Progress,
) -> None:
    """Boot an incomplete machine, save it and end it."""
    disk = context.home.root_disk(context.id)
    if image.disk is not None:
        from cerne.storage.overlay import create_overlay

        create_overlay(image.disk.path, image.disk.format, disk, context.spec.root_size)
    plan = replace(context.plan(), memory_file=directory / "memory")
    instance = start_helper(context, engine, plan, TEMPLATE)
    goes_on = boots_on(context, instance, f"booting {context.last.image} once", progress)
    agent, deadline = instance.agent(), time.monotonic() + timeout
    agent.wait_ready(timeout, alive=goes_on)
    complete_boot(context, image, agent, deadline, goes_on)
    instance.save(directory, plan.disks, resume=False)
    instance.kill()
    instance.wait(KILL_TIMEOUT)


def _keep_disk(context: MachineContext, image: Image) -> str:
    """Make a machine's disk a layer; its ID, or an empty string where it has no disk."""
    if image.disk is None:
        return ""
    layer = uuid.uuid4().hex[:12]
    context.home.root_disk(context.id).rename(context.home.layer(layer))
    return layer


def _key(spec: MachineSpec, image: Image, engine: Engine) -> str:
    return _digest([_family(spec, image, engine), engine.fingerprint()])


def _family(spec: MachineSpec, image: Image, engine: Engine) -> str:
    parts: list[object] = [_FORMAT, image.digest, spec.cpus, spec.memory, spec.root_size]
    # Templates of machines without room for more CPUs are those of before there was such room.
    parts += [engine.name] if spec.max_cpus is None else [engine.name, f"to {spec.max_cpus}"]
    # A card on a tap has other features than one on a socket.
    return _digest([*parts, "tap"] if is_named(spec.network) else parts)


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
