"""One machine, and what it shares with the others of its manager: what operations are given."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerne.engine.record import InstanceRecord
from cerne.errors import NotFoundError, StorageError
from cerne.manager.disks.layers import Layers
from cerne.manager.machines.plan import disk_plans, launch_plan, network_nic, nic_plans
from cerne.manager.machines.states import state_error
from cerne.manager.store import Record, State, Store
from cerne.spec.ports import PublishedPort

if TYPE_CHECKING:
    from cerne.engine.base import Engine, Instance
    from cerne.engine.plan import DiskPlan, LaunchPlan, NetworkNic
    from cerne.images import Image, ImageStore
    from cerne.manager.home import Home
    from cerne.spec.machine import MachineSpec


@dataclass(frozen=True, slots=True)
class ManagerContext:
    """What every machine of one manager shares."""

    home: Home
    store: Store
    images: Callable[[], ImageStore]
    choose_engine: Callable[[str], Engine]


class MachineContext:
    """One machine, as its operations see it; `last` is its record as last read."""

    def __init__(self, manager: ManagerContext, record: Record) -> None:
        self.manager = manager
        self.home = manager.home
        self.store = manager.store
        self.layers = Layers(manager.home, manager.store)
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

    def image(self) -> Image:
        return self.manager.images().get(self.last.digest)

    def engine(self) -> Engine:
        """The engine that it last ran on, which alone knows how that run went."""
        return self.manager.choose_engine(self.last.engine)

    def plan(self, saved: Path | None = None) -> LaunchPlan:
        """How its engine is to start it, or has started it."""
        spec = self.spec.with_ports(self.ports)
        plan = launch_plan(self.home, self.last, spec, self.image(), self.network_nics())
        return replace(plan, saved=saved)

    def network_nics(self) -> dict[int, NetworkNic]:
        """Its cards on networks with names, as an engine has them, by their numbers."""
        cards = self.store.cards_of(self.id)
        if not cards:
            return {}
        networks = {card.network: self.store.network(card.network) for card in cards.values()}
        return {
            nic.number: network_nic(nic, card, networks[card.network])
            for nic in self.spec.nics
            if (card := cards.get(nic.number)) is not None
        }

    @property
    def asked_ports(self) -> tuple[PublishedPort, ...]:
        """Its published ports, as they were asked for."""
        return () if _plainly_has_no_ports(self.last.spec) else self.spec.ports

    @property
    def ports(self) -> tuple[PublishedPort, ...]:
        """Its published ports; while it runs, with the numbers that were chosen for it."""
        return tuple(port for ports in self.published.values() for port in ports)

    @property
    def published(self) -> dict[int, tuple[PublishedPort, ...]]:
        """The same, by the numbers of its cards."""
        if _plainly_has_no_ports(self.last.spec):
            return {}
        numbers = iter(self._chosen_numbers())
        return {
            nic.number: tuple(
                port if port.host_port else replace(port, host_port=next(numbers, 0))
                for port in nic.ports
            )
            for nic in self.spec.nics
        }

    def _chosen_numbers(self) -> list[int]:
        """The numbers that were chosen for ports with the number 0, in their order."""
        try:
            numbers = json.loads(self.chosen_ports.read_text())
        except FileNotFoundError:
            return []
        asked = self.spec.ports
        if len(numbers) == len(asked):
            # An older Cerne noted the numbers of all ports.
            return [
                number for number, port in zip(numbers, asked, strict=True) if not port.host_port
            ]
        return list(numbers)

    @property
    def chosen_ports(self) -> Path:
        """Where the ports are noted that were chosen; it goes when the machine ends."""
        return self.runtime / "ports.json"

    def instance(self, record: Record | None = None) -> Instance:
        """The machine that runs, by what was kept of it when it started.

        Where nothing was kept, as an older Cerne started it, that is made up for, once.

        Raises:
            StateError: it does not run.
            DamagedError: its record is unreadable.
        """
        record = record or self.last
        if record.process is None:
            raise state_error(record, State.RUNNING)
        engine = self.manager.choose_engine(record.engine)
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
        nics = nic_plans(self.id, self.spec, self.network_nics())
        return nics[0].mac if nics else None


def _plainly_has_no_ports(spec: str) -> bool:
    """Whether a stored specification publishes nothing, told without its model.

    Models are slow to load, and a listing looks at each machine. A specification that is older, or
    damaged, is for the model to read.
    """
    try:
        return not any(nic["ports"] for nic in json.loads(spec)["nics"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
