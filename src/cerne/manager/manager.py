"""All machines of this user on this host: making, finding and listing them."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Set
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

from cerne.errors import (
    ConflictError,
    DamagedError,
    EngineError,
    GuestError,
    InputError,
    NotFoundError,
)
from cerne.manager.binding import this_process, watched
from cerne.manager.capacity import (
    Capacity,
    capacity,
    check_host,
    claim_of_disks,
    require_room,
    set_overcommit,
)
from cerne.manager.home import Home
from cerne.manager.lock import held, is_held, remove_unheld
from cerne.manager.machines.collection import collect
from cerne.manager.machines.context import MachineContext, ManagerContext
from cerne.manager.machines.creation import new_record
from cerne.manager.machines.disks import settle_disks
from cerne.manager.machines.machine import Machine
from cerne.manager.machines.plan import wanted_engine
from cerne.manager.machines.recovery import current_record, sweep_abandoned
from cerne.manager.machines.telling import ready_timeout
from cerne.manager.names import made_up_name
from cerne.manager.networks import Network, ensure_networks, list_networks
from cerne.manager.networks import create as create_network
from cerne.manager.on_host import check_image, found_spec
from cerne.manager.operations import Kind, Operation, end_abandoned, recorded
from cerne.manager.recovery import discard, discard_runtime, names_in
from cerne.manager.store import (
    HELPERS,
    CardRow,
    Event,
    ImageUsers,
    OperationRow,
    Record,
    Store,
    Subject,
    name_in_use,
)
from cerne.manager.warm.pool import Pool, new_pool_row
from cerne.manager.warm.template import Templates, may_have_template
from cerne.spec.names import check_name

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from cerne.engine.base import Engine
    from cerne.host.process import ProcessIdentity
    from cerne.images import Image, ImageStore, Progress
    from cerne.manager.machines.balance import Balance
    from cerne.manager.machines.machine import Snapshot
    from cerne.spec.machine import MachineSpec
    from cerne.spec.named_network import NetworkSpec


_log = logging.getLogger(__name__)

_SWEEP_INTERVAL = 1.0
"""Seconds."""

_LOOKING = 5.0
"""Seconds after which events are looked for even if nobody told of them."""

_ID = re.compile("[0-9a-f]{12}")
"""Of a machine or a snapshot, after which its lock is named."""


def _choose_engine(home: Home, requested: str) -> Engine:
    from cerne.engine.select import choose_engine

    return choose_engine(requested, home.guest_speed)


class Manager:
    """The machines and the images of one home. Cheap to make; no daemon is behind it."""

    def __init__(
        self,
        home: Home | None = None,
        choose_engine: Callable[[str], Engine] | None = None,
    ) -> None:
        """Open a home: this user's, or another. An engine is chosen by what was asked for.

        Raises:
            StorageError, DamagedError: its store is not usable.
        """
        self.home = home or Home.of_this_user()
        self._store = Store(
            self.home.store, self._require_image, self.home.waiters, self.home.ledger()
        )
        self._next_sweep = 0.0
        self._context = ManagerContext(
            self.home,
            self._store,
            lambda: self.images,
            choose_engine or partial(_choose_engine, self.home),
        )

    def close(self) -> None:
        """Close its store; neither it nor its machines can be used any more."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Manager of {self.home.data}>"

    @cached_property
    def images(self) -> ImageStore:
        """The images of this home."""
        from cerne.images import ImageStore

        return ImageStore(self.home.images, self.home.cache)

    @cached_property
    def templates(self) -> Templates:
        """The templates of this home."""
        return Templates(self._context)

    def build_image(self, recipe: str, progress: Progress | None = None) -> Image:
        """Build a built-in image, even if there is a current one.

        Raises:
            NotFoundError: there is no such recipe.
            CerneError: it could not be built; nothing is left of it.
        """
        with recorded(self._store, Kind.IMAGE_BUILD, Subject.IMAGE, recipe, progress) as operation:
            image = self.images.build(recipe, operation)
            operation.result |= {"image": image.name, "digest": image.digest}
        return image

    def import_image(
        self,
        source: str,
        name: str | None = None,
        *,
        checksum: str | None = None,
        format_: str | None = None,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> Image:
        """Take a disk image from a path or an address, as `ImageStore.import_` does.

        Raises:
            CerneError: what `ImageStore.import_` raises; nothing is left of it.
        """
        with recorded(
            self._store, Kind.IMAGE_IMPORT, Subject.IMAGE, name or source, progress
        ) as operation:
            image = self.images.import_(
                source,
                name,
                checksum=checksum,
                format_=format_,
                replace=replace,
                progress=operation,
            )
            operation.result |= {"image": image.name, "digest": image.digest}
        return image

    def ensure_image(self, reference: str, progress: Progress | None = None) -> Image:
        """The image of this name; a built-in one is built first if needed.

        Raises:
            NotFoundError: there is no image and no recipe with this name.
            CerneError: it could not be built; nothing is left of it.
        """
        return self.images.present(reference) or self.build_image(reference, progress)

    def warm(
        self,
        spec: MachineSpec,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> bool:
        """Make the template that machines of this kind start from; whether there was none.

        Raises:
            InputError: machines of this kind boot each time.
            CerneError: making it failed; nothing of it is left.
        """
        check_host(self._context, spec)
        self._sweep()
        image = self.ensure_image(spec.image, progress)
        check_image(spec, image)
        if not may_have_template(spec, image):
            raise InputError(
                f"machines of {spec.image} boot each time",
                hint="a template needs an image with the agent, no --mount, standard isolation, "
                "and not CERNE_TEMPLATES=never",
            )
        engine = self._context.choose_engine(wanted_engine(spec, image))
        if self.templates.find(spec, image, engine) is not None:
            return False
        with recorded(
            self._store, Kind.IMAGE_WARM, Subject.IMAGE, spec.image, progress
        ) as operation:
            limit = ready_timeout(image) if timeout is None else timeout
            self.templates.make(spec, image, engine, limit, operation)
        return True

    def warm_later(self, machine: Machine) -> None:
        """Have the template of a machine's kind made in the background, if there can be one."""
        spec, image = machine.spec, self.images.get(machine.record.digest)
        engine = self._context.choose_engine(wanted_engine(spec, image))
        if may_have_template(spec, image) and not self.templates.find(spec, image, engine):
            self.templates.make_later(spec)

    def create_pool(self, name: str, spec: MachineSpec, ready: int) -> Pool:
        """Define a pool of so many machines; `Pool.fill` makes them.

        Raises:
            InputError, ConflictError: a value is not valid, or the name is in use.
            CapacityError: this host has no room for its machines.
        """
        row = new_pool_row(name, found_spec(spec), ready)
        check_host(self._context, spec)
        ensure_networks(self._context, spec.nics)
        require_room(self._context, spec, ready)
        # An image that is not here yet is made when the pool is filled.
        with contextlib.suppress(NotFoundError):
            check_image(spec, self.images.get(spec.image))
        self._store.add_pool(row)
        return Pool(self, self._store, row)

    def pools(self) -> list[Pool]:
        """All pools, by their names."""
        return [Pool(self, self._store, row) for row in self._store.pools()]

    def pool(self, name: str) -> Pool:
        """The pool of this name.

        Raises:
            NotFoundError: there is none.
        """
        for pool in self.pools():
            if pool.name == name:
                return pool
        raise NotFoundError(f"there is no pool named {name}", hint="see: cerne pool ls")

    def create_network(self, spec: NetworkSpec | str) -> Network:
        """Make a network with a name; it runs while a machine on it runs.

        A text is the name of a network with the defaults; `cerne.network_spec` makes others.

        Raises:
            InputError: the name is not valid.
            ConflictError: its name or a subnet is in use, or this host routes a subnet.
            HostError: this host lacks what it needs; the hint is what to type.
        """
        if isinstance(spec, str):
            from cerne.spec.named_network import network_spec

            spec = network_spec(spec)
        return Network(self._context, create_network(self._context, spec))

    def networks(self) -> list[Network]:
        """All networks with names, by their names."""
        return [Network(self._context, row) for row in list_networks(self._context)]

    def network(self, name: str) -> Network:
        """The network of this name.

        Raises:
            NotFoundError: there is none.
        """
        return Network(self._context, self._store.network(name))

    def addresses(self) -> Mapping[str, list[CardRow]]:
        """The cards of all machines on networks with names, by the machines' IDs."""
        return self._store.all_cards()

    def require_free_name(self, name: str) -> None:
        """Refuse a name that a new machine cannot have.

        Raises:
            InputError, ConflictError: the name is not valid, or is in use.
        """
        check_name(name)
        if self._store.find(name) is not None:
            raise name_in_use(name)

    def create(
        self,
        spec: MachineSpec,
        progress: Progress | None = None,
        client: ProcessIdentity | None = None,
    ) -> Machine:
        """Define a machine, with its image made or fetched and its disks ready.

        With a `client` it is bound to that process, and removed when that has ended.

        Raises:
            ConflictError: its name is in use.
            CapacityError: this host could never run it.
            NotFoundError, ImageError: its image is missing, and making it failed.
        """
        spec = self._checked(spec)
        self._sweep()
        image = self.ensure_image(spec.image, progress)
        check_image(spec, image)
        record = new_record(spec, spec.image, image.digest, client=client)
        directory = self.home.machine_directory(record.id)
        with held(self.home.machine_lock(record.id), "create", record.name):
            try:
                directory.mkdir(mode=0o700)
                claim = claim_of_disks(self.home, spec, image)
                self._make_disk(record, spec, image)
                self._store.add(record, claim=claim)
            except BaseException:
                discard(directory)
                self.home.machine_lock(record.id).unlink(missing_ok=True)
                raise
        return Machine(self._context, record)

    def run(
        self,
        spec: MachineSpec,
        *,
        timeout: float | None = None,
        keep_failed: bool = False,
        cold: bool = False,
        progress: Progress | None = None,
        client: ProcessIdentity | None = None,
    ) -> Machine:
        """Define a machine, start it, and wait at most `timeout` seconds until it is ready.

        It goes on from the template of its kind, if there is one and `cold` does not have it boot.

        Where that fails nothing is left, unless `keep_failed` asks for a machine that failed, and
        was not refused, to be kept, to be looked at. An interrupt (Ctrl-C) always undoes it. With a
        `client` it is bound to that process, as `create` has it.

        Raises:
            CerneError: what `create` and `Machine.start` raise.
        """
        with self._run(spec.name, progress) as operation:
            machine = self.create(spec, operation, client)
            try:
                machine.start(timeout, cold=cold, progress=operation)
            except BaseException as error:
                # One that the host refused to start has nothing to say.
                if keep_failed and isinstance(error, EngineError | GuestError):
                    error.advise(_how_to_look_at(machine.name))
                else:
                    machine.undo(error)
                raise
            operation.result["machine"] = machine.name
        return machine

    @contextlib.contextmanager
    def running(
        self,
        spec: MachineSpec,
        *,
        timeout: float | None = None,
        cold: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Machine]:
        """A machine that is started as `run` does, and removed at the end of the block.

        It is bound to this process: if the process ends in the block, the machine is removed too.

        Raises:
            CerneError: what `create` and `Machine.start` raise; nothing is left.
        """
        owner = os.getpid()
        with contextlib.ExitStack() as watching:
            with self._run(spec.name, progress) as operation:
                machine = self.create(spec, operation, this_process())
                watching.enter_context(watched(self.home, machine.id))
                try:
                    machine.start(timeout, cold=cold, progress=operation)
                except BaseException as error:
                    machine.undo(error)
                    raise
                operation.result["machine"] = machine.name
            try:
                yield machine
            finally:
                # A child that was forked in the block may leave it too: it is not the child's.
                if os.getpid() == owner:
                    with contextlib.suppress(NotFoundError):
                        machine.remove(force=True)

    def require_agent(self, spec: MachineSpec, progress: Progress | None = None) -> None:
        """Refuse a machine in which no command can be run, because its image has no agent.

        Raises:
            GuestError: its image has no agent.
            CerneError: as `create`, before the image is made.
        """
        self._checked(spec)
        if not self.ensure_image(spec.image, progress).agent:
            raise GuestError(
                f"{spec.image} contains no agent, so no command runs in it",
                hint=f"use its console: cerne run -d --name NAME {spec.image}; cerne console NAME",
            )

    def _checked(self, spec: MachineSpec) -> MachineSpec:
        """The specification of a new machine, with its files found, before anything is made."""
        if self._store.find(spec.name) is not None:
            raise name_in_use(spec.name)
        spec = found_spec(spec)
        check_host(self._context, spec)
        ensure_networks(self._context, spec.nics)
        if spec.data_disks:
            from cerne.manager.machines.attach import require_not_ours

            require_not_ours(self.home, spec.data_disks)
        return spec

    def capacity(self) -> Capacity:
        """What this host has for machines, what is promised to them, and what is free."""
        return capacity(self._context)

    def balance(self) -> Balance:
        """Ask guests for memory that the host lacks, or give back what it has to spare.

        Only machines with a memory guarantee below their memory are asked, and never below it.
        """
        from cerne.manager.machines.balance import balance

        return balance(self._context)

    def set_overcommit(self, ratios: Mapping[str, float]) -> None:
        """Change how much of ``cpu``, ``memory`` and ``disk`` may be promised.

        Each ratio is a part of what the host has; machines that run keep what they have.

        Raises:
            InputError: there is no such resource, or a ratio is not valid.
        """
        set_overcommit(self._context, ratios)

    def free_name(self) -> str:
        """A made-up name that no machine has."""
        taken = self._store.names()
        return next(name for name in iter(made_up_name, "") if name not in taken)

    def get(self, name: str) -> Machine:
        """The machine of this name or ID.

        Raises:
            NotFoundError: there is none.
        """
        record = self._store.find(name)
        if record is None:
            raise NotFoundError(f"there is no machine named {name}", hint="see: cerne ls")
        return Machine(self._context, record)

    def machine_of(self, record: Record) -> Machine:
        """The machine of this row, also after a rename."""
        return Machine(self._context, record)

    def machines(self) -> list[Machine]:
        """All machines, the oldest first; those that are incomplete are none yet."""
        self._sweep_incomplete()
        sweep_abandoned(self._context)
        end_abandoned(self._store)
        records = self._store.machines()
        return [Machine(self._context, record) for record in records if not record.incomplete]

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, the oldest first.

        Raises:
            DamagedError: the files of one are unreadable.
        """
        from cerne.manager.machines.machine import Snapshot

        return [Snapshot(self._context, row) for row in self._store.snapshots()]

    def snapshot_names(self) -> list[str]:
        """The names of all snapshots, the oldest first, also of unreadable ones."""
        return [row.name for row in self._store.snapshots()]

    def snapshot(self, name: str) -> Snapshot:
        """The snapshot of this name or ID.

        Raises:
            NotFoundError: there is none.
            DamagedError: its files are unreadable.
        """
        from cerne.manager.machines.machine import Snapshot
        from cerne.manager.snapshots.kept import unknown_snapshot

        row = self._store.find_snapshot(name)
        if row is None:
            raise unknown_snapshot(name)
        return Snapshot(self._context, row)

    def remove_snapshot(self, name: str) -> None:
        """Remove the snapshot of this name or ID, even an unreadable one.

        Raises:
            NotFoundError: there is none.
        """
        from cerne.manager.snapshots.kept import unknown_snapshot
        from cerne.manager.snapshots.remove import remove

        row = self._store.find_snapshot(name)
        if row is None:
            raise unknown_snapshot(name)
        remove(self._context, row)

    def import_snapshot(
        self, source: Path, name: str | None = None, progress: Progress | None = None
    ) -> Snapshot:
        """Take a snapshot from a file that `Snapshot.export` wrote, checked before it is loaded.

        Raises:
            NotFoundError: there is no such file.
            DamagedError, ImageError: it is truncated or altered, or no snapshot at all.
            HostError: this host could not go on with it: its processor or engine is another.
            ConflictError: the name is in use.
            StorageError: there is no space for it.
        """
        from cerne.manager.machines.machine import Snapshot
        from cerne.manager.snapshots.transfer import import_snapshot

        self._sweep()
        with recorded(
            self._store,
            Kind.SNAPSHOT_IMPORT,
            Subject.SNAPSHOT,
            source.name if name is None else name,
            progress,
        ) as operation:
            row = import_snapshot(self._context, source, name, operation)
            operation.result["snapshot"] = row.name
        return Snapshot(self._context, row)

    def operations(self) -> list[OperationRow]:
        """The long operations that are kept, of all commands, the oldest first."""
        end_abandoned(self._store)
        return self._store.operations()

    def operation(self, id_: str) -> OperationRow:
        """The long operation with this ID.

        Raises:
            NotFoundError: there is none, or it is not kept any more.
        """
        end_abandoned(self._store)
        return self._store.operation(id_)

    def cancel_operation(self, id_: str) -> None:
        """Ask the process that works on an operation to cancel it; it does at its next step.

        Raises:
            NotFoundError: there is none with this ID.
            StateError: it has ended.
        """
        end_abandoned(self._store)
        self._store.cancel_operation(id_)

    def events(self, after: int = 0) -> list[Event]:
        """What happened to all machines, from the event numbered `after` on."""
        return self._store.events(after)

    def follow_events(
        self, after: int = 0, machine_id: str | None = None
    ) -> Generator[Event, None, None]:
        """Events of all machines or of one, as `events` has them and then as they happen."""
        with self._store.changes() as changes:
            while True:
                for event in self._store.events(after, machine_id):
                    after = event.number
                    yield event
                changes.wait(_LOOKING)

    def remove_image(self, reference: str) -> None:
        """Remove an image that no machine, no snapshot and no pool is made of.

        One that has another name keeps what is made of it, and loses this name alone.

        Raises:
            NotFoundError: there is no such image.
            ConflictError: something is made of it.
        """
        digest = self.images.digest_of(reference)
        with self._store.image_users(reference, digest) as users:
            last = not set(self.images.names_of(digest)) - {reference}
            _require_unused(reference, users, last=last)
            if last:
                self.templates.remove_of(digest)
            self.images.remove(reference)
        self._remove_unnamed_images()

    def _remove_unnamed_images(self) -> None:
        """Remove the images whose names are others' now, and that nothing is made of any more."""
        try:
            unnamed = self.images.unnamed()
        except DamagedError as error:
            _log.warning("no images without a name are removed: %s", error.message)
            return
        for digest in unnamed:
            with self._store.image_users("", digest) as users:
                if users.machines or users.helpers or users.snapshots:
                    continue
                self.templates.remove_of(digest)
                # Another command may have removed it meanwhile, or given it a name.
                with contextlib.suppress(NotFoundError, ConflictError):
                    self.images.remove(digest)

    def _run(
        self, name: str, progress: Progress | None
    ) -> contextlib.AbstractContextManager[Operation]:
        return recorded(self._store, Kind.RUN, Subject.MACHINE, name, progress)

    def _require_image(self, digest: str) -> None:
        try:
            self.images.digest_of(digest)
        except NotFoundError as error:
            raise ConflictError(
                "the image was removed while the command used it", hint="run the command again"
            ) from error

    def _make_disk(self, record: Record, spec: MachineSpec, image: Image) -> None:
        from cerne.storage.overlay import create_overlay

        if image.disk is not None:
            root = self.home.root_disk(record.id)
            try:
                create_overlay(image.disk.path, image.disk.format, root, spec.root_size)
            except DamagedError:
                self._require_image(record.digest)
                raise
        if spec.data_disks:
            from cerne.manager.machines.attach import make_disk

            context = MachineContext(self._context, record)
            for disk in spec.data_disks:
                make_disk(context, disk)
            settle_disks(context)

    def _sweep_incomplete(self) -> None:
        """Remove the forks whose command was killed before they were complete."""
        for record in self._store.incomplete():
            # What is still being made stays; its lock is held.
            with contextlib.suppress(NotFoundError):
                current_record(MachineContext(self._context, record))

    def _sweep(self) -> None:
        """Remove what commands that were killed left, and nothing in the store names.

        It takes time for each machine, so a program that makes many does it once a second.
        """
        from cerne.manager.snapshots.remove import sweep

        if time.monotonic() < self._next_sweep:
            return
        self._sweep_incomplete()
        sweep_abandoned(self._context)
        known = self._store.ids()
        for machine_id in names_in(self.home.machines) - known:
            lock = self.home.machine_lock(machine_id)
            if not is_held(lock) and self._unknown(machine_id):
                discard_runtime(self.home, machine_id)
                discard(self.home.machine_directory(machine_id))
                remove_unheld(lock)
        self._sweep_locks(known)
        sweep(self.home, self._store, known)
        self.templates.sweep()
        collect(self._context)
        self._next_sweep = time.monotonic() + _SWEEP_INTERVAL

    def _sweep_locks(self, known: Set[str]) -> None:
        """Remove the locks of what a command was killed over before there was anything of it."""
        of_known = {f"{id_}.lock" for id_ in known}
        for name in names_in(self.home.locks) - of_known:
            id_, _, kind = name.partition(".")
            if kind != "lock" or not _ID.fullmatch(id_):
                continue
            nothing = not any(
                directory.exists()
                for directory in (
                    self.home.machine_directory(id_),
                    self.home.snapshot_directory(id_),
                )
            )
            # It may have been added since the list was read.
            named = self._store.find_id(id_) or self._store.find_snapshot(id_)
            if nothing and not named:
                remove_unheld(self.home.machine_lock(id_))

    def _unknown(self, machine_id: str) -> bool:
        """Look again: it may have been added, and its lock freed, since the list was read."""
        return self._store.find_id(machine_id) is None


def _require_unused(reference: str, users: ImageUsers, *, last: bool) -> None:
    if last and users.helpers:
        made = " and ".join(HELPERS[each] for each in users.helpers)
        raise ConflictError(
            f"the image {reference} is in use: {made} of it is being made",
            hint="try again when that is done; see: cerne operation ls",
        )
    found = {"machine": users.machines, "snapshot": users.snapshots} if last else {}
    found |= {"pool": users.pools}
    commands = {"machine": "cerne rm", "snapshot": "cerne snapshot rm", "pool": "cerne pool rm"}
    if any(found.values()):
        said = [f"the {kind} {name}" for kind, names in found.items() for name in names]
        remove = [f"{commands[kind]} {' '.join(names)}" for kind, names in found.items() if names]
        raise ConflictError(
            f"the image {reference} is in use by {', '.join(said)}",
            hint=f"remove these first: {'; '.join(remove)}",
        )


def _how_to_look_at(name: str) -> str:
    return (
        f"{name} is kept: read its log with cerne logs {name}, and remove it with cerne rm {name}"
    )
