"""What is done to one machine's row, process and files, under its lock.

Every operation holds the machine's lock, begins from what its process says, and is one
transaction a change. Whatever is killed midway is found and put right by the next operation.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from cerne import faults
from cerne.engine.base import RunState
from cerne.engine.plan import slots
from cerne.engine.record import InstanceRecord
from cerne.errors import (
    BusyError,
    CerneError,
    DamagedError,
    EngineError,
    GuestError,
    GuestTimeoutError,
    HostError,
    NotAnsweringError,
    NotFoundError,
    StateError,
    StorageError,
)
from cerne.host.members import MACHINE, Members
from cerne.host.notes import Notes
from cerne.host.process import boot_id
from cerne.images.files import sync_directory
from cerne.manager.admission import memory_limit
from cerne.manager.layers import Layers
from cerne.manager.lock import held, is_held
from cerne.manager.plan import disk_plans, launch_plan, nic_plans
from cerne.manager.readiness import ended_before_ready, last_lines
from cerne.manager.recovery import discard, discard_runtime
from cerne.manager.store import Record, State, Store
from cerne.network.ports import chosen
from cerne.spec.limits import ROOT_SERIAL

if TYPE_CHECKING:
    from cerne.engine.base import Engine, Instance
    from cerne.engine.plan import DiskPlan, LaunchPlan
    from cerne.images import Image, ImageStore
    from cerne.manager.home import Home
    from cerne.manager.template import Template
    from cerne.spec.machine import MachineSpec
    from cerne.spec.ports import PublishedPort

_log = logging.getLogger(__name__)

READY_TIMEOUT = 120.0
"""Seconds that a guest may take to become ready, unless a command says otherwise."""

HELPER_ENDED = "helper ended"
"""The kind of the event that a process which serves a machine has ended."""

KILL_TIMEOUT = 10.0
_ENDING_TIMEOUT = 2.0

WAS_PAUSED = "paused"
"""The reason of a machine that is being saved or stopped, and was paused before."""
MADE = ".made"
"""What the name of a disk ends in that was made for a machine which does not have it yet."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every machine of one manager shares."""

    home: Home
    store: Store
    images: Callable[[], ImageStore]
    choose_engine: Callable[[str], Engine]

    def collect(self) -> None:
        """Remove the layers that no machine, no snapshot and no template needs any more."""
        # What another command is at now is not waited for: the next one collects.
        with contextlib.suppress(BusyError):
            Layers(self.home, self.store).collect(self._kept_layers)

    def _kept_layers(self) -> list[str]:
        """The layers of templates."""
        from cerne.manager.template import templates_of

        return [template.layer for template in templates_of(self.home) if template.layer]

    def sweep_abandoned(self) -> None:
        """Remove the machines whose client has ended without removing them."""
        for record in self.store.bound():
            if record.client is None or record.client.alive():
                continue
            # What another command works on is left to it, or to the next one.
            try:
                Life(self, record).remove_abandoned()
            except (CerneError, OSError) as error:
                _log.debug("%s is not removed: %s", record.name, error)


class Life:
    """One machine, as its operations see it; `last` is its record as last read."""

    def __init__(self, surroundings: Surroundings, record: Record) -> None:
        self.surroundings = surroundings
        self.home = surroundings.home
        self.store = surroundings.store
        self.layers = Layers(surroundings.home, surroundings.store)
        self.last = record

    @property
    def id(self) -> str:
        return self.last.id

    @property
    def spec(self) -> MachineSpec:
        from cerne.spec.upgrade import stored_spec

        return stored_spec(self.last.spec, self.last.name)

    @property
    def directory(self) -> Path:
        return self.home.machine_directory(self.id)

    @property
    def runtime(self) -> Path:
        return self.home.machine_runtime(self.id)

    @property
    def lock_path(self) -> Path:
        return self.home.machine_lock(self.id)

    @property
    def telling_lock(self) -> Path:
        """Held by the command that tells its guest what it must know."""
        return self.runtime / "telling.lock"

    @property
    def console_log(self) -> Path:
        return self.directory / "console.log"

    @property
    def logs(self) -> tuple[Path, ...]:
        """What its console and its process said."""
        return self.console_log, self.directory / "engine.log"

    @property
    def saved(self) -> Path:
        """Where it is kept while it is suspended."""
        return self.home.saved(self.id)

    def record(self) -> Record:
        """What is known of it now; a run that has ended is noticed and recorded.

        Raises:
            NotFoundError: it has been removed.
        """
        self.last = self.store.get(self.id)
        return self.looked_at()

    def looked_at(self) -> Record:
        """The same, where its row was read just now."""
        self._tell_notes()
        if _needs_settling(self.last) and not is_held(self.lock_path):
            # Who only looks waits for nobody: what cannot be put right now is shown as it is.
            with (
                _not_found_alone(),
                held(self.lock_path, "recovery", self.last.name, patience=0),
            ):
                record = self.store.get(self.id)
                self.last = self._settled(record) if _needs_settling(record) else record
        return self.last

    @contextlib.contextmanager
    def operation(self, name: str, *, settle: bool = True) -> Iterator[Record]:
        """Hold the machine's lock; its record, put right where `settle` says so."""
        with held(self.lock_path, name, self.last.name):
            record = self.store.get(self.id)
            if (settle or record.incomplete) and _needs_settling(record):
                record = self._settled(record)
            self.last = record
            try:
                yield record
            except NotAnsweringError as error:
                raise hung(self.last) from error

    def require(self, record: Record, *states: State) -> None:
        """Refuse what the machine's state does not allow.

        Raises:
            StateError: it is in none of these states.
            NotAnsweringError: its process is stopped, and will do nothing.
        """
        if record.state not in states:
            raise state_error(record)
        refuse_stopped(record)

    def image(self) -> Image:
        return self.surroundings.images().get(self.last.digest)

    def engine(self) -> Engine:
        """The engine that it last ran on, which alone knows how that run went."""
        return self.surroundings.choose_engine(self.last.engine)

    def plan(self, saved: Path | None = None) -> LaunchPlan:
        """How its engine is to start it, or has started it."""
        spec = self.spec.on_network(self.spec.network, self.ports)
        plan = launch_plan(self.home, self.last, spec, self.image())
        return replace(plan, saved=saved)

    @property
    def ports(self) -> tuple[PublishedPort, ...]:
        """Its published ports; while it runs, with the numbers that were chosen for it."""
        asked = self.spec.ports
        if not asked:
            return asked
        try:
            numbers = json.loads(self._chosen_ports.read_text())
        except FileNotFoundError:
            return asked
        return tuple(
            replace(port, host_port=number) for port, number in zip(asked, numbers, strict=True)
        )

    @property
    def _chosen_ports(self) -> Path:
        # It goes with the directory when the machine ends.
        return self.runtime / "ports.json"

    @contextlib.contextmanager
    def choosing_ports(self) -> Iterator[None]:
        """Choose a port for each that may be any; nobody else is given it in this block.

        Raises:
            HostError, InputError: there is none, or the address is not one of this host's.
        """
        asked = self.spec.ports
        if all(port.host_port for port in asked):
            yield
            return
        with chosen(asked) as ports:
            self._chosen_ports.write_text(json.dumps([port.host_port for port in ports]))
            yield

    def own_disks(self) -> dict[str, Path]:
        """The disks that are its alone, by their serials; not those that the host has elsewhere."""
        root = self.home.root_disk(self.id)
        disks = {ROOT_SERIAL: root} if root.exists() else {}
        own = [disk.serial for disk in self.spec.data_disks if disk.own]
        return disks | {serial: self.home.disk(self.id, serial) for serial in own}

    def freeze(self) -> dict[str, Path]:
        """Freeze its own disks as they are (`Layers.freeze`); the layers by the disks' serials.

        Raises:
            StorageError, StateError: one cannot be; it is as it was.
        """
        return self.layers.freeze(self.id, self.own_disks())

    def lay(self, layers: Mapping[str, Path]) -> None:
        """Make its disks, each an empty overlay on a layer that the store has it refer to.

        Raises:
            StorageError: one cannot be made.
        """
        for serial, layer in layers.items():
            self.layers.overlay(layer, self.home.disk(self.id, serial))

    def launch(
        self, engine: Engine, saved: Path | None = None, onto: Mapping[str, Path] | None = None
    ) -> Record:
        """Start its process, which boots, or goes on from what `Engine.save` wrote to `saved`.

        With `onto`, its disks of these serials are replaced by empty overlays on these layers.
        Where anything fails it has the disks that it had, and is suspended if it was, or else
        ``failed``.

        Raises:
            CapacityError, ConflictError, HostError: the host cannot run it now.
            EngineError: it did not start.
        """
        record, plan = self.last, self.plan(saved)
        engine.require(plan)
        # One that a command left which was killed after the machine ran.
        self._commit_disks()
        self.settle_disks()
        self.surroundings.sweep_abandoned()
        under = [layer.stem for layer in (onto or {}).values()]
        self.store.reserve(record, engine.name, memory_limit(), under)
        try:
            for serial, layer in (onto or {}).items():
                self.layers.replace(self.home.disk(self.id, serial), layer)
            self.clear_runtime()
            if saved is None:
                self._merge_layers()
                plan.console_log.unlink(missing_ok=True)
            with self.choosing_ports():
                instance = engine.start(self.plan(saved))
            process, kept = instance.process, instance.record.to_json()
            _log.debug("%s runs on %s as process %d", record.name, engine.name, process.pid)
            faults.step("started")
            self.take_weight(instance)
            if record.incomplete:
                self.last = self.store.note_process(record, process, instance=kept)
            else:
                untold = self._to_be_told(record, saved, agent=instance.record.agent)
                self.last = self.store.set_process(record, process, untold, instance=kept)
        except BaseException as error:
            why = error.message if isinstance(error, CerneError) else "its start was interrupted"
            self._not_started(self.store.get(record.id), why)
            raise
        faults.step("running")
        # From here on its disks are no longer those that the memory of before knows.
        self._commit_disks()
        self.layers.settle(self.id)
        discard(self.saved)
        return self.last

    def _to_be_told(self, record: Record, saved: Path | None, *, agent: bool) -> str:
        """What its guest must be told once it runs, where it has an agent."""
        from cerne.manager.telling import Untold, added

        if not agent:
            return ""
        if saved is None:
            return Untold.BOOT
        return added(record.untold if saved == self.saved else "", Untold.IDENTITY)

    def start_new(self, engine: Engine, template: Template | None) -> bool:
        """Start a machine that never ran, from a template if there is one; whether it was.

        A template that is damaged, or that its engine refuses, is removed, and the machine boots.

        Raises:
            CerneError: what `launch` raises.
        """
        if template is not None:
            onto = {ROOT_SERIAL: self.home.layer(template.layer)} if template.layer else {}
            try:
                self.launch(engine, template.directory, onto)
            except DamagedError as error:
                _log.warning("%s boots, as its template cannot be used: %s", self.last.name, error)
                discard(template.directory)
            else:
                return True
        self.launch(engine)
        return False

    def await_ready(self, timeout: float) -> None:
        """Wait until a guest that boots is ready, or else kill its machine.

        One that somebody paused meanwhile is not killed.

        Raises:
            EngineError, GuestError: it ended or did not become ready.
            StateError: it was paused.
        """
        try:
            self.tell(timeout)
        except StateError:
            raise
        except BaseException as error:
            failure = self._failed_to_become_ready(error, timeout)
            if failure is error:
                raise
            raise failure from error

    def tell(self, timeout: float = READY_TIMEOUT) -> None:
        """Tell a guest that runs what it must still be told (`cerne.manager.telling`).

        Raises:
            StateError, GuestError: it cannot be told now; the next command tells it.
        """
        if self.last.untold:
            from cerne.manager.telling import tell

            tell(self, timeout)

    def introduce(self) -> None:
        """Tell a guest that was forked who it is now; from then on its machine is whole.

        Raises:
            GuestError: it does not answer, or cannot be told.
        """
        process = self.last.process
        assert process is not None
        instance = self.instance()
        if instance.record.agent:
            # The guest answers at once: it was ready when it was saved.
            instance.agent().renew(hostname=self.last.name, mac=self.first_mac())
            faults.step("renewed")
        self.last = self.store.set_process(self.last, process)
        if instance.record.agent:
            self.last = self.store.set_ready(self.last)

    def unserved(self) -> list[str]:
        """The devices whose process has ended and is not started again, while it runs."""
        if not self._runs():
            return []
        return sorted({member.role for member in Members(self.runtime).lost()})

    def _runs(self) -> bool:
        process = self.last.process
        return self.last.state.live and process is not None and process.alive()

    def _tell_notes(self) -> None:
        """Make events of what was noted of the processes that serve it."""
        if not self._runs():
            return
        with Notes(self.runtime).taken() as notes:
            for words in notes:
                self.store.tell(self.last, HELPER_ENDED, words)
        for member in Members(self.runtime).lost():
            if not member.noted:
                words = f"what serves {member.role} has ended, and is not started again"
                self.store.tell(self.last, HELPER_ENDED, words)
                member.note()

    def instance(self, record: Record | None = None) -> Instance:
        """The machine that runs, by what was kept of it when it started.

        Where nothing was kept, as an older Cerne started it, that is made up for, once.

        Raises:
            StateError: it does not run.
            DamagedError: what was kept cannot be read.
        """
        record = record or self.last
        if record.process is None:
            raise state_error(record)
        engine = self.surroundings.choose_engine(record.engine)
        if record.instance:
            kept = InstanceRecord.from_json(record.instance)
        else:
            kept = engine.describe(self.plan(), record.process)
            # A full disk, or its removal, is for others to find.
            with contextlib.suppress(StorageError, NotFoundError):
                self.store.note_instance(record, kept.to_json())
        # It may have been renamed since.
        return engine.attach(replace(kept, name=record.name))

    def disks(self) -> tuple[DiskPlan, ...]:
        """Its disks, as its engine has them."""
        has_root = self.home.root_disk(self.id).exists()
        return disk_plans(self.home, self.id, self.spec, has_root=has_root)

    def first_mac(self) -> str | None:
        """The address of its first network card, if it has one."""
        nics = nic_plans(self.id, self.spec)
        return nics[0].mac if nics else None

    def take_weight(self, instance: Instance) -> None:
        """Give its process, which was just started, the CPU weight that it is to have, if any.

        Raises:
            HostError: the host does not let this user do so.
        """
        weight = self.spec.cpu_weight
        if weight is not None:
            instance.set_cpu_weight(weight)
            faults.step("weighed")

    def plug_missing(self) -> None:
        """Plug into its process what its specification has, and a killed command left out.

        Raises:
            CerneError: it cannot be plugged in.
        """
        self.settle_disks()
        devices = slots((*self.disks(), *nic_plans(self.id, self.spec)))
        if not devices:
            return
        instance = self.instance()
        plugged = instance.plugged()
        for slot, device in devices.items():
            if slot not in plugged:
                instance.plug(device)

    def settle_disks(self) -> dict[str, Path]:
        """Put the files of its disks right, as its specification has them.

        What was made for a disk becomes it; and a disk that is not its any more is not removed
        but kept, in `Home.disks`. Where those are now, by their serials.
        """
        wanted = set(self.own_disks().values())
        for half_made in self.directory.glob("*.qcow2.new"):
            half_made.unlink()
        for made in self.directory.glob(f"data-*{MADE}"):
            disk = made.with_name(made.name.removesuffix(MADE))
            if disk in wanted and not disk.exists():
                made.rename(disk)
            else:
                made.unlink()
        kept = {}
        for disk in self.directory.glob("data-*.qcow2"):
            if disk not in wanted:
                serial = disk.stem.removeprefix("data-")
                kept[serial] = self._keep_disk(disk, serial)
        return kept

    def release_disks(self) -> None:
        """Keep what is not its own any more, before it is removed.

        Where its specification cannot be read, that is all that is beside its root disk.
        """
        try:
            self.settle_disks()
        except DamagedError:
            for disk in self.directory.glob("data-*.qcow2"):
                self._keep_disk(disk, disk.stem.removeprefix("data-"))

    def _keep_disk(self, disk: Path, serial: str) -> Path:
        first = f"{self.last.name}-{serial}"
        names = chain([first], (f"{first}-{number}" for number in count(2)))
        targets = (self.home.disks / f"{name}.qcow2" for name in names)
        target = next(path for path in targets if _linked(disk, path))
        disk.unlink()
        sync_directory(target.parent)
        faults.step("disk kept")
        return target

    def clear_runtime(self) -> None:
        """Make its runtime directory, empty."""
        discard_runtime(self.home, self.id)
        self.runtime.mkdir(mode=0o700)

    def ended(self, record: Record, state: State, reason: str) -> Record:
        """Record that it has no process any more; only a suspended machine keeps its memory."""
        _log.debug("%s is %s: %s", record.name, state, reason)
        discard_runtime(self.home, self.id)
        self._discard_saved(whole=state is not State.SUSPENDED)
        return self.store.change(record, state, reason=reason)

    def kill(self, record: Record, reason: str, state: State = State.STOPPED) -> Record:
        """End its process at once.

        Raises:
            EngineError: the process does not end.
        """
        if record.process is not None:
            record.process.send(signal.SIGKILL)
            if not record.process.wait(KILL_TIMEOUT):
                raise EngineError(
                    f"process {record.process.pid} of {record.name} does not end",
                    hint="it is stuck in the kernel: see dmesg",
                    machine=record.name,
                )
        else:
            Members(self.runtime).end()
        return self.ended(record, state, reason)

    def forget(self, record: Record) -> None:
        """Remove all that there is of it."""
        # From here on it does not exist; what is left of it is swept by the next `create`.
        self.store.remove(record)
        discard(self.directory)
        discard_runtime(self.home, self.id)
        self.lock_path.unlink(missing_ok=True)
        self.surroundings.collect()

    def remove_abandoned(self) -> None:
        """End and remove it: the client that it is bound to has ended.

        Raises:
            BusyError: an operation works on it.
            NotFoundError: it has been removed.
            EngineError: its process does not end.
        """
        if is_held(self.lock_path):
            return
        with held(self.lock_path, "remove", self.last.name, patience=0.0):
            record = self.store.get(self.id)
            if record.state.live:
                record = self.kill(record, "the process that it was bound to has ended")
            self.release_disks()
            self.forget(record)

    def abandon(self) -> None:
        """End and remove it, where it is incomplete."""
        record = self.store.get(self.id)
        if record.process is not None:
            record.process.send(signal.SIGKILL)
            record.process.wait(KILL_TIMEOUT)
        Members(self.runtime).end()
        self.forget(record)

    @contextlib.contextmanager
    def saving(self, record: Record, directory: Path, done: str = "saved") -> Iterator[None]:
        """Its engine saves it to this new directory, or forks it, in this block.

        Afterwards it is as it was before, and `done` is the event. A command that is killed in
        the block is noticed by the next one, which lets the guest run on if it ran.
        """
        # What a command left that was killed after it had woken the machine.
        self._discard_saved(whole=True)
        was_paused = record.state is State.PAUSED
        reason = WAS_PAUSED if was_paused else ""
        self.last = self.store.change(record, State.SAVING, reason=reason)
        faults.step("saving")
        try:
            directory.mkdir(mode=0o700)
            yield
        except BaseException:
            # First of all: if the disk is full, the store too waits for this.
            discard(directory)
            # What cannot be put right now is put right by the next operation.
            with contextlib.suppress(CerneError):
                self.last = self._settled(self.last)
            raise
        if self.last.state is State.SAVING:
            state = State.PAUSED if was_paused else State.RUNNING
            self.last = self.store.change(self.last, state, kind=done)

    def _settled(self, record: Record) -> Record:
        """Put right what an interrupted command, an ended process or a restarted host left."""
        if record.incomplete:
            self.abandon()
            raise NotFoundError(
                f"{record.name} was never whole: the command that made it was interrupted",
                hint="see: cerne ls",
            )
        if record.process is None:
            return self._settled_start(record)
        if record.process.alive():
            return self._settled_alive(record)
        if record.state is State.SAVING and self._is_suspended():
            return self.ended(record, State.SUSPENDED, "")
        if record.process.boot_id != boot_id():
            return self.ended(record, State.STOPPED, "the host was restarted")
        ending = self.surroundings.choose_engine(record.engine).ending(self.directory)
        return self.ended(record, State.STOPPED if ending.orderly else State.FAILED, ending.reason)

    def _settled_start(self, record: Record) -> Record:
        why = "the command that started it was interrupted"
        found = Members(self.runtime).alive(MACHINE)
        if len(found) == 1 and self._is_suspended() and not self._is_replaced():
            # It may have run on and written to its disk: its memory of before is of no use then.
            with contextlib.suppress(EngineError, HostError):
                engine = self.surroundings.choose_engine(record.engine)
                instance = engine.attach(engine.describe(self.plan(), found[0]))
                # One that still waits for its memory, or for the word to go on, has not run.
                if instance.status() is not RunState.HELD:
                    instance.resume()
                    self.take_weight(instance)
                    kept = instance.record
                    untold = self._to_be_told(record, self.saved, agent=kept.agent)
                    record = self.store.set_process(
                        record, found[0], untold, instance=kept.to_json()
                    )
                    discard(self.saved)
                    return record
        self._not_started(record, why)
        return self.store.get(record.id)

    def settled_if_it_answers(self, record: Record) -> Record:
        """Put right what an interrupted command left; its record as it is where it hangs."""
        if not _needs_settling(record):
            return record
        try:
            return self._settled(record)
        except NotAnsweringError:
            return record

    def _settled_alive(self, record: Record) -> Record:
        refuse_stopped(record)
        if record.doing or record.state is State.STOPPING:
            return self.observed(record, f"{record.doing or 'stop'} interrupted")
        # What was saved is of no use once it runs on, and all that there is where it never does.
        instance = self.instance(record)
        instance.status()
        self._discard_saved(whole=True)
        instance.break_off_saving()
        if record.reason != WAS_PAUSED:
            instance.resume()
        return self.observed(record, "saving interrupted")

    def observed(self, record: Record, kind: str) -> Record:
        """Record what its process says that it does: it runs, or is paused.

        Raises:
            EngineError: it does not answer.
        """
        from cerne.manager.telling import Untold, added

        instance = self.instance(record)
        if instance.status() is RunState.RUNNING:
            # A guest that was paused, or held while it was saved, is late.
            held_up = record.state in (State.PAUSED, State.SAVING) or record.reason == WAS_PAUSED
            late = held_up and instance.record.agent
            untold = added(record.untold, Untold.TIME) if late else None
            return self.store.change(record, State.RUNNING, kind=kind, untold=untold)
        return self.store.change(record, State.PAUSED, kind=kind)

    def _merge_layers(self) -> None:
        base = self.image().disk
        merged = False
        for serial, disk in self.own_disks().items():
            if serial != ROOT_SERIAL:
                merged |= self.layers.merge(disk, None, "")
            elif base is not None:
                merged |= self.layers.merge(disk, base.path, base.format)
        if merged:
            self.layers.settle(self.id)
            self.surroundings.collect()

    def _commit_disks(self) -> None:
        for disk in self.own_disks().values():
            self.layers.commit(disk)

    def _is_replaced(self) -> bool:
        return any(self.layers.is_replaced(disk) for disk in self.own_disks().values())

    def _discard_saved(self, *, whole: bool) -> None:
        discard(self.home.half_saved(self.id))
        if whole:
            discard(self.saved)

    def _is_suspended(self) -> bool:
        return self.saved.exists()

    def _not_started(self, record: Record, why: str) -> None:
        Members(self.runtime).end()
        for disk in self.own_disks().values():
            self.layers.roll_back(disk)
        # A disk that cannot be read may lie on any of its layers.
        with contextlib.suppress(DamagedError):
            self.layers.settle(self.id)
        self.ended(record, State.SUSPENDED if self._is_suspended() else State.FAILED, why)

    def _failed_to_become_ready(self, error: BaseException, timeout: float) -> BaseException:
        """Kill a machine that did not become ready; the error that says why."""
        name = self.last.name
        if type(error) is GuestError and self.last.process is not None:
            # The connection broke: the process is most likely ending, and will have said why.
            self.last.process.wait(_ENDING_TIMEOUT)
        with self.operation("kill") as record:
            if not record.state.live:
                return ended_before_ready(record.name, record.reason, self.console_log)
            if record.state is not State.RUNNING or not record.untold:
                # Others have paused, saved or told it meanwhile: it is theirs now.
                return error
            why = error.message if isinstance(error, CerneError) else "its start was interrupted"
            self.last = self.kill(record, why, State.FAILED)
        if not isinstance(error, GuestTimeoutError):
            return error
        said = last_lines(self.console_log)
        end = f"; its console ended with: {said[-1]}" if said else "; its console said nothing"
        return GuestTimeoutError(
            f"{name} was not ready after {timeout:g} s{end}",
            hint=f"its console log is {self.console_log}; --timeout gives it longer",
            machine=name,
        )


_REMEDIES = {
    State.DEFINED: "start",
    State.STOPPED: "start",
    State.FAILED: "start",
    State.PAUSED: "resume",
    State.SUSPENDED: "wake",
}


def state_error(record: Record) -> StateError:
    """The error that a machine's state does not allow what was asked."""
    reason = f" ({record.reason})" if record.reason else ""
    remedy = _REMEDIES.get(record.state)
    return StateError(
        f"{record.name} is {record.state}{reason}",
        hint=f"{remedy} it with: cerne {remedy} {record.name}" if remedy else "",
        machine=record.name,
    )


def _linked(file: Path, target: Path) -> bool:
    """Give a file another name, unless another has it; whether it has that name now."""
    try:
        os.link(file, target)
    except FileExistsError:
        # A command that was killed may have come so far.
        return target.samefile(file)
    return True


def refuse_stopped(record: Record) -> None:
    """Refuse what a machine's process would have to do, where that is stopped.

    Raises:
        NotAnsweringError: it is.
    """
    if record.process is not None and record.process.state() == _STOPPED:
        raise hung(record)


def hung(record: Record) -> NotAnsweringError:
    """The error that a machine's process does not answer, in words that name it and say why."""
    process = record.process
    if process is None:
        return NotAnsweringError(
            f"the process of {record.name} does not answer", machine=record.name
        )
    state = process.state()
    why = _PROCESS_STATES.get(state, f"it gave no answer in time (state {state})")
    resume = f"let it go on: kill -CONT {process.pid}; or " if state == _STOPPED else ""
    return NotAnsweringError(
        f"process {process.pid} of {record.name} does not answer: {why}",
        hint=f"{resume}end it: cerne kill {record.name}",
        machine=record.name,
    )


@contextlib.contextmanager
def _not_found_alone() -> Iterator[None]:
    """Let through that a machine is gone, and no other failure."""
    try:
        yield
    except NotFoundError:
        raise
    except CerneError as error:
        _log.debug("left as it is: %s", error.message)


_STOPPED = "T"
_PROCESS_STATES = {
    _STOPPED: f"it is stopped ({_STOPPED})",
    "t": "a debugger holds it (t)",
    "D": "it waits in the kernel (D)",
}


def _needs_settling(record: Record) -> bool:
    if not record.state.live:
        return False
    if record.state in (State.STARTING, State.SAVING, State.STOPPING) or record.process is None:
        return True
    if record.doing:
        return True
    return not record.process.alive()
