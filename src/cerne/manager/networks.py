"""Networks with names: making and removing them, and their start with the first machine.

A network runs while a machine on it runs: the first one starts it, and the end of the last one ends
it. Its addresses are in the store, so they stay. One command at a time changes what runs of a
network (its lock); a command that was killed leaves a network that the next one finds or ends.
"""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import CerneError, HostError, NotFoundError
from cerne.manager.lock import held
from cerne.manager.recovery import discard
from cerne.manager.store import NetworkRow
from cerne.spec.network import DEFAULT, Uplink

if TYPE_CHECKING:
    from cerne.manager.machines.context import ManagerContext
    from cerne.manager.store import CardRow, Record
    from cerne.network.network import Network as RunningNetwork
    from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkState
    from cerne.spec.named_network import NetworkSpec
    from cerne.spec.nic import Nic

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reach:
    """One card of a machine on a network, and how it is reached."""

    network: str
    machine: str
    """The machine's name."""
    number: int
    mac: str
    ipv4: str | None
    ipv6: str | None


class Network:
    """A network of this home. Get one from `Manager.network` or `Manager.create_network`."""

    def __init__(self, context: ManagerContext, row: NetworkRow) -> None:
        self._context = context
        self.row = row

    def __repr__(self) -> str:
        return f"<Network {self.name}>"

    @property
    def name(self) -> str:
        return self.row.name

    @property
    def spec(self) -> NetworkSpec:
        """What it was made as.

        Raises:
            DamagedError: its row is damaged.
        """
        return spec_of(self.row)

    @property
    def uplink(self) -> str:
        """What connects it to the networks of the host, from `cerne.spec.network.Uplink`."""
        return self.spec.uplink

    @property
    def runs(self) -> bool:
        """Whether it runs, as it does while a machine on it runs."""
        row = self._context.store.network(self.row.id)
        return row.holder is not None and row.holder.alive()

    def cards(self) -> list[Reach]:
        """The cards of machines on it, by the machines' names."""
        store = self._context.store
        found = []
        for card in store.cards_on(self.row.id):
            record = store.find_id(card.machine)
            if record is not None:
                found.append(
                    Reach(self.name, record.name, card.number, card.mac, card.ipv4, card.ipv6)
                )
        return sorted(found, key=lambda card: (card.machine, card.number))

    def state(self) -> NetworkState | None:
        """What it has and what is wrong with it; None if it does not run and need not.

        Raises:
            EngineError: it does not answer.
        """
        row = self._context.store.network(self.row.id)
        needed = bool(self._context.store.cards_on(row.id, live=True))
        found = attached(self._context, row, dead=needed)
        return None if found is None else found.state()

    def notes(self, state: NetworkState | None = None) -> tuple[str, ...]:
        """What of it does not work on this host, as sentences with the command that helps.

        `state` is what `state` returned, if it runs.
        """
        from cerne.network.finding import host_notes

        subnets = [each for each in (self.row.ipv4, self.row.ipv6) if each is not None]
        noted = _public_notes(subnets)
        return (*noted, *(host_notes(self.spec.uplink) if state is None else state.notes))

    def remove(self) -> None:
        """Remove it.

        Raises:
            ConflictError: a machine has a card on it.
        """
        with locked(self._context, self.row, "remove"):
            row = self._context.store.network(self.row.id)
            self._context.store.require_unused_network(row)
            _stop(self._context, row)
            faults.step("network ended")
            self._context.store.remove_network(row)
        self._context.home.network_lock(self.row.id).unlink(missing_ok=True)

    def repair(self) -> tuple[str, ...]:
        """Make again what is missing of it, and return what was done.

        Machines that run keep their cards as long as their network's namespace exists.

        Raises:
            HostError: the host lacks what it needs.
        """
        with locked(self._context, self.row, "repair"):
            row = self._context.store.network(self.row.id)
            cards = _live_cards(self._context, row)
            if not cards:
                _stop(self._context, row)
                return ()
            found = attached(self._context, row, dead=True) or started(self._context, row)
            done = found.repair(cards)
            faults.step("network repaired")
            if found.record.holder != row.holder:
                self._context.store.set_holder(row, found.record.holder)
            there = {card.plan.mac for card in found.cards() if card.connected}
            lost = sorted({card.name for card in cards if card.mac not in there})
            return (*done, *(_lost(name) for name in lost))


def _public_notes(subnets: Sequence[str]) -> list[str]:
    from ipaddress import ip_network

    return [
        f"the subnet {subnet} is not a private one: machines do not reach the hosts of others there"
        for subnet in subnets
        if ip_network(subnet).is_global
    ]


def _lost(name: str) -> str:
    return f"the card of {name} lost its namespace: cerne restart {name}"


def spec_of(row: NetworkRow) -> NetworkSpec:
    """The specification of a network.

    Raises:
        DamagedError: its row is damaged.
    """
    from cerne.spec.named_network import stored_network_spec

    return stored_network_spec(row.spec, row.name)


def create(context: ManagerContext, spec: NetworkSpec) -> NetworkRow:
    """Define a network, and see that this host can start it.

    Raises:
        ConflictError: its name or a subnet is in use, or the host routes a subnet.
        HostError: the host lacks what it needs; the hint is what to type.
    """
    row = _new_row(context, spec)
    context.store.add_network(row)
    faults.step("network added")
    try:
        with locked(context, row, "create"):
            started(context, row)
            faults.step("network tried")
            # Another command may have started a machine on it.
            if not context.store.cards_on(row.id, live=True):
                _stop(context, context.store.network(row.id))
    except BaseException:
        # What fails here has a better reason above.
        with contextlib.suppress(CerneError):
            _stop(context, context.store.network(row.id))
        with contextlib.suppress(CerneError):
            context.store.remove_network(row)
        raise
    return context.store.network(row.id)


def ensure_networks(context: ManagerContext, nics: Sequence[Nic]) -> None:
    """Refuse cards on networks that do not exist; make the network ``default`` if one names it.

    Raises:
        NotFoundError: there is no such network.
        CerneError: as `create`.
    """
    for nic in nics:
        if not nic.is_named:
            continue
        try:
            context.store.network(nic.network)
        except NotFoundError:
            if nic.network != DEFAULT:
                raise
            from cerne.spec.named_network import network_spec

            create(context, network_spec(DEFAULT))


def list_networks(context: ManagerContext) -> list[NetworkRow]:
    """All networks; those that run with no machine are ended, as a killed command leaves them."""
    for row in context.store.networks():
        runs = row.holder is not None or context.home.network_runtime(row.id).exists()
        if runs and not context.store.cards_on(row.id, live=True):
            with contextlib.suppress(CerneError), locked(context, row, "stop", patience=0.0):
                if not context.store.cards_on(row.id, live=True):
                    _stop(context, context.store.network(row.id))
    return context.store.networks()


@contextlib.contextmanager
def locked(
    context: ManagerContext, row: NetworkRow, operation: str, patience: float | None = None
) -> Iterator[None]:
    """Change what runs of a network, alone.

    Raises:
        BusyError: another command works on it for long.
    """
    lock = context.home.network_lock(row.id)
    with held(lock, operation, f"the network {row.name}", patience):
        yield


def attached(
    context: ManagerContext, row: NetworkRow, *, dead: bool = False
) -> RunningNetwork | None:
    """A network as its row knows it; None if it does not run, or, with `dead`, never ran."""
    from cerne.network import network as mechanism
    from cerne.network.plan import NetworkRecord

    if row.holder is None:
        return None
    plan = network_plan(context, row)
    found = mechanism.attach_network(plan, NetworkRecord(row.holder, plan.directory))
    return found if dead or found.alive() else None


def started(context: ManagerContext, row: NetworkRow) -> RunningNetwork:
    """A network that runs, started if it did not; its lock is held.

    Raises:
        HostError: the host lacks what it needs, or forbids it.
        ConflictError: the host has a route to its subnet by now.
    """
    from cerne.network import network as mechanism

    row = context.store.network(row.id)
    found = attached(context, row)
    if found is not None:
        return found
    plan = network_plan(context, row)
    plan.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    record = mechanism.start_network(plan)
    faults.step("network started")
    context.store.set_holder(row, record.holder)
    faults.step("network noted")
    return mechanism.attach_network(plan, record)


def add_card(
    context: ManagerContext, row: NetworkRow, plan: CardPlan
) -> tuple[int, CardState | None]:
    """Connect a card; the descriptor of its tap, and what the network says about it.

    Raises:
        CerneError: as `started`, or the card collides with another.
    """
    with locked(context, row, "connect"):
        network = started(context, row)
        tap = network.add_card(plan)
        faults.step("card connected")
        state = next((each for each in network.cards() if each.plan.mac == plan.mac), None)
        return tap, state


def remove_cards(context: ManagerContext, machine_id: str, cards: Sequence[CardRow]) -> None:
    """Disconnect cards of a machine that has ended; a network without running machines ends.

    What fails is left to the next command, because a machine's end must be noted.
    """
    for network_id in {card.network for card in cards}:
        macs = [card.mac for card in cards if card.network == network_id]
        try:
            _leave(context, context.store.network(network_id), machine_id, macs)
        except (CerneError, OSError) as error:
            _log.debug("a card of %s is not disconnected: %s", machine_id, error)


def change_card(context: ManagerContext, row: NetworkRow, plan: CardPlan) -> CardState | None:
    """Change the rules, ports, rate or name of a card; None if its network does not run.

    Raises:
        ConflictError: a port is in use; nothing has changed.
    """
    with locked(context, row, "change"):
        network = attached(context, context.store.network(row.id))
        return None if network is None else network.set_card(plan)


def card_plan(record: Record, card: CardRow, nic: Nic) -> CardPlan:
    """A card of a machine as its network must have it."""
    from ipaddress import IPv4Address, IPv6Address

    from cerne.network.plan import CardPlan

    egress = nic.allow or None
    return CardPlan(
        mac=card.mac,
        machine=record.id,
        name=record.name,
        ipv4=None if card.ipv4 is None else IPv4Address(card.ipv4),
        ipv6=None if card.ipv6 is None else IPv6Address(card.ipv6),
        ports=nic.ports,
        egress=() if nic.egress == "none" else egress,
        host_ports=nic.host_access,
        rate=nic.rate,
        keeps_clients=nic.number == 0,
    )


def network_plan(context: ManagerContext, row: NetworkRow) -> NetworkPlan:
    """A network as the host must have it."""
    from ipaddress import IPv4Network, IPv6Network

    from cerne.network.plan import NetworkPlan

    spec = spec_of(row)
    return NetworkPlan(
        id=row.id,
        name=row.name,
        uplink=spec.uplink,
        directory=context.home.network_runtime(row.id),
        ipv4=None if row.ipv4 is None else IPv4Network(row.ipv4),
        gateway4=row.gateway4,
        ipv6=None if row.ipv6 is None else IPv6Network(row.ipv6),
        gateway6=row.gateway6,
        parent=spec.parent,
        vlan=spec.vlan,
        force=spec.force,
    )


def _new_row(context: ManagerContext, spec: NetworkSpec) -> NetworkRow:
    from ipaddress import IPv4Network, IPv6Network

    from cerne.network.addresses import pick_ipv4, pick_ipv6, require_unrouted
    from cerne.network.preflight import lacks

    for lack in lacks(spec.uplink):
        raise HostError(lack.message, hint=lack.hint)
    ipv4, ipv6 = spec.ipv4, spec.ipv6
    if spec.uplink is not Uplink.BRIDGE:
        rows = context.store.networks()
        if ipv4 is None:
            ipv4 = str(pick_ipv4([IPv4Network(row.ipv4) for row in rows if row.ipv4]))
        else:
            require_unrouted(IPv4Network(ipv4))
        if ipv6 is None:
            ipv6 = str(pick_ipv6([IPv6Network(row.ipv6) for row in rows if row.ipv6]))
        else:
            require_unrouted(IPv6Network(ipv6))
    return NetworkRow(
        uuid.uuid4().hex[:12], spec.name, spec.model_dump_json(), ipv4, ipv6, time.time()
    )


def _live_cards(context: ManagerContext, row: NetworkRow) -> list[CardPlan]:
    """The cards of machines that run, as the network must have them."""
    from cerne.spec.upgrade import stored_spec

    plans = []
    for card in context.store.cards_on(row.id, live=True):
        record = context.store.find_id(card.machine)
        if record is None:
            continue
        nics = stored_spec(record.spec, record.name).nics
        plans += [card_plan(record, card, nic) for nic in nics if nic.number == card.number]
    return plans


def _leave(context: ManagerContext, row: NetworkRow, machine_id: str, macs: Sequence[str]) -> None:
    if row.holder is None and not context.home.network_runtime(row.id).exists():
        return
    with locked(context, row, "disconnect"):
        row = context.store.network(row.id)
        others = [
            card for card in context.store.cards_on(row.id, live=True) if card.machine != machine_id
        ]
        if not others:
            _stop(context, row)
            return
        network = attached(context, row)
        if network is not None:
            for mac in macs:
                network.remove_card(mac)


def _stop(context: ManagerContext, row: NetworkRow) -> None:
    """End what runs of a network; its lock is held."""
    directory = context.home.network_runtime(row.id)
    found = attached(context, row, dead=True)
    if found is None and directory.exists():
        # A command was killed before it noted the process, which the start of it finds.
        found = started(context, row)
    if found is not None:
        found.stop()
        faults.step("network stopped")
        if context.store.network(row.id).holder is not None:
            context.store.set_holder(row, None)
    discard(directory)
