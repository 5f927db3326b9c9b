"""Pools: machines of one kind that are ready before anybody asks for them.

They run, started from the template of their kind, so that to take one is a transaction of the store
and nothing else. A command that takes one has another made in the background; there is no daemon.
"""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Protocol

from cerne.errors import InputError, NotFoundError
from cerne.manager.background import run_later
from cerne.manager.binding import this_process
from cerne.manager.lock import held, is_held, remove_unheld
from cerne.manager.operations import Kind, Operation, recorded
from cerne.manager.store import PoolRow, Record, State, Subject
from cerne.manager.warm.template import may_have_template
from cerne.spec.names import check_name
from cerne.spec.network import NetworkKind, parse_network

if TYPE_CHECKING:
    from cerne.host.process import ProcessIdentity
    from cerne.images import Image, Progress
    from cerne.manager.home import Home
    from cerne.manager.machines.machine import Machine
    from cerne.manager.store import Store
    from cerne.spec.machine import MachineSpec

_MOST_READY = 1000
_LONGEST_NAME = 48


class Maker(Protocol):
    """What a pool asks of the manager that it is of."""

    @property
    def home(self) -> Home: ...

    def ensure_image(self, reference: str, progress: Progress | None = None) -> Image: ...

    def require_free_name(self, name: str) -> None: ...

    def machine_of(self, record: Record) -> Machine: ...

    def run(
        self,
        spec: MachineSpec,
        *,
        progress: Progress | None = None,
        client: ProcessIdentity | None = None,
    ) -> Machine: ...

    def warm(self, spec: MachineSpec, *, progress: Progress | None = None) -> bool: ...


class Pool:
    """A pool that is in the store. Get one from `Manager.pool`."""

    def __init__(self, manager: Maker, store: Store, row: PoolRow) -> None:
        self._manager = manager
        self._store = store
        self._row = row

    def __repr__(self) -> str:
        return f"<Pool {self.name} of {self.spec.image}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self._row.name

    @property
    def wanted(self) -> int:
        """How many of its machines are to be ready."""
        return self._row.ready

    @property
    def spec(self) -> MachineSpec:
        """What its machines are."""
        from cerne.spec.upgrade import stored_spec

        return stored_spec(self._row.spec, self._row.name)

    @property
    def ready(self) -> int:
        """How many of its machines are ready now."""
        return sum(_is_ready(record) for record in self._store.members(self.name))

    def take(self, name: str | None = None) -> Machine:
        """A machine that is ready, or one that is made now where none is.

        It keeps the name that it has, unless another is given. The pool is filled again in the
        background.

        Raises:
            ConflictError: the name is in use; the pool is as it was.
            CerneError: none was ready, and none can be made.
        """
        if name is not None:
            self._manager.require_free_name(name)
        machine = self._claimed() or self._new()
        self.fill_later()
        if name is not None:
            machine.rename(name)
        return machine

    def fill(self, progress: Progress | None = None) -> int:
        """Make machines until as many are ready as are to be; how many were made.

        Those that have ended are removed.

        Raises:
            CapacityError: the host cannot guarantee the memory of another one.
            CerneError: making one failed.
        """
        with (
            held(self._manager.home.pool_lock(self.name), "fill", self.name),
            recorded(self._store, Kind.POOL_FILL, Subject.POOL, self.name, progress) as operation,
        ):
            made = self._fill(operation)
            operation.result["made"] = str(made)
        return made

    def _fill(self, operation: Operation) -> int:
        made = 0
        self._sweep()
        image = self._manager.ensure_image(self.spec.image, operation)
        if may_have_template(self.spec, image):
            self._manager.warm(self.spec, progress=operation)
        while len(self._store.members(self.name)) < self.wanted:
            self._add_new(operation)
            made += 1
            operation(f"filling {self.name}", made, None)
        return made

    def fill_later(self) -> None:
        """Have a process of its own fill it."""
        home = self._manager.home
        run_later(home, "fill", self.name, home.pools_log)

    def remove(self) -> None:
        """Remove it, with the machines in it.

        Raises:
            CerneError: a machine cannot be removed, which is in no pool any more; the others are.
        """
        members = self._store.members(self.name)
        self._store.remove_pool(self.name)
        remove_unheld(self._manager.home.pool_lock(self.name))
        with ExitStack() as removals:
            for record in members:
                removals.callback(self._remove, record)

    def _remove(self, record: Record) -> None:
        with suppress(NotFoundError):
            self._manager.machine_of(record).remove(force=True)

    def _claimed(self) -> Machine | None:
        while (machine_id := self._store.claim(self.name)) is not None:
            machine = self._manager.machine_of(self._store.get(machine_id))
            if machine.state is State.RUNNING:
                return machine
            machine.remove(force=True)
        return None

    def _add_new(self, progress: Progress) -> None:
        # Until it is in the pool it is this process's, without which it is removed.
        record = self._new(progress, this_process()).record
        try:
            self._store.join_pool(record, self.name)
        except NotFoundError:
            # The pool was removed meanwhile, and would not have this machine removed with it.
            self._remove(record)
            raise

    def _new(
        self, progress: Progress | None = None, client: ProcessIdentity | None = None
    ) -> Machine:
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        return self._manager.run(self.spec.changed(name=name), progress=progress, client=client)

    def _sweep(self) -> None:
        """Remove machines of it that have ended, or whose maker was killed."""
        for record in self._store.members(self.name):
            try:
                machine = self._manager.machine_of(record)
                if not _is_ready(machine.record) and not is_held(
                    self._manager.home.machine_lock(record.id)
                ):
                    machine.remove(force=True)
            except NotFoundError:
                continue


def new_pool_row(name: str, spec: MachineSpec, ready: int) -> PoolRow:
    """The row of a new pool.

    Raises:
        InputError: a value is not valid.
    """
    check_name(name, "a pool's")
    if len(name) > _LONGEST_NAME:
        raise InputError(
            f"the name {name} is too long for a pool", hint="use at most 48 characters"
        )
    if not 0 <= ready <= _MOST_READY:
        raise InputError(
            f"{ready} is not a number of machines that a pool keeps ready", hint="give 0 to 1000"
        )
    if spec.ports or parse_network(spec.network).kind is NetworkKind.TAP:
        raise InputError(
            "machines of a pool have no published ports and no tap, which only one machine can use",
            hint="leave --publish and --network out",
        )
    return PoolRow(name, spec.image, spec.model_dump_json(), ready, time.time())


def _is_ready(record: Record) -> bool:
    return record.state is State.RUNNING and record.ready is not None
