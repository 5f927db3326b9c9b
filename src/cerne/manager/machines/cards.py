"""The cards of a machine on networks with names: connected for its start, and changed later."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cerne import faults
from cerne.errors import NotFoundError
from cerne.manager.machines.context import MachineContext
from cerne.manager.networks import add_card, card_plan, change_card, remove_cards
from cerne.manager.store import CardRow, Record
from cerne.network.ports import chosen

if TYPE_CHECKING:
    from cerne.engine.plan import LaunchPlan, NetworkNic
    from cerne.network.plan import CardState
    from cerne.spec.nic import Nic
    from cerne.spec.ports import PublishedPort

    Ports = tuple[PublishedPort, ...]


@dataclass
class Connections:
    """The cards of a machine that is about to start: the taps of those on networks with names."""

    taps: dict[str, int] = field(default_factory=dict)
    """The descriptors of open taps by the cards' hardware addresses."""
    ports: dict[int, tuple[PublishedPort, ...]] = field(default_factory=dict)
    """The published ports of these cards, by their numbers."""

    def in_plan(self, plan: LaunchPlan) -> LaunchPlan:
        """The plan with the open taps."""
        if not self.taps:
            return plan
        from cerne.engine.plan import NetworkNic

        nics = [
            replace(nic, tap=self.taps[nic.mac]) if isinstance(nic, NetworkNic) else nic
            for nic in plan.nics
        ]
        return replace(plan, nics=tuple(nics))


@contextlib.contextmanager
def connecting(context: MachineContext) -> Iterator[Connections]:
    """Connect the cards of a machine that starts in this block, and choose a port for each 0.

    The taps are closed here at the end. If the machine does not start, its end disconnects them
    (`disconnect`).

    Raises:
        HostError, ConflictError: a network does not start, or a port is not free.
        InputError: the address of a port is not one of this host's.
    """
    connections = Connections()
    try:
        _connect(context, connections)
        with _choosing_ports(context, connections):
            yield connections
    finally:
        for tap in connections.taps.values():
            os.close(tap)


def disconnect(context: MachineContext) -> None:
    """Disconnect the cards of a machine that has ended."""
    cards = [*context.store.cards_of(context.id).values()]
    if cards:
        remove_cards(context.manager, context.id, cards)


def connected_nic(context: MachineContext, nic: Nic) -> tuple[NetworkNic, int]:
    """Connect one card of a machine that runs; as an engine plugs it in, and its open tap.

    Raises:
        CerneError: as `connecting`.
    """
    card = context.store.cards_of(context.id)[nic.number]
    tap, state = _add(context, card, nic)
    _note_ports(context, {nic.number: () if state is None else state.ports})
    return replace(context.network_nics()[nic.number], tap=tap), tap


def disconnect_nic(context: MachineContext, card: CardRow) -> None:
    """Disconnect one card of a machine that keeps running."""
    remove_cards(context.manager, context.id, [card])


def rename_cards(context: MachineContext) -> None:
    """Tell the networks of a machine that runs its new name."""
    set_cards(context, context.store.get(context.id))


def set_cards(context: MachineContext, record: Record, only: int | None = None) -> None:
    """Tell the networks of a machine that runs what its cards, or `only` one, must be now.

    Raises:
        ConflictError: a port is in use; nothing has changed.
    """
    cards = context.store.cards_of(context.id)
    ports = {}
    for nic in context.spec.nics:
        if nic.is_named and only in (None, nic.number):
            card = cards[nic.number]
            row = context.store.network(card.network)
            state = change_card(context.manager, row, card_plan(record, card, nic))
            if state is not None:
                ports[nic.number] = state.ports
    _note_ports(context, ports)


def card_on(context: MachineContext, network: str) -> Nic:
    """The card of a machine on a network.

    Raises:
        NotFoundError: it has none.
    """
    for nic in context.spec.nics:
        if nic.network == network:
            return nic
    raise NotFoundError(
        f"{context.last.name} has no card on the network {network}",
        hint=f"see: cerne network inspect {network}",
    )


def _connect(context: MachineContext, connections: Connections) -> None:
    cards = context.store.cards_of(context.id)
    if not cards:
        return
    for nic in context.spec.nics:
        if nic.is_named:
            card = cards[nic.number]
            tap, state = _add(context, card, nic)
            connections.taps[card.mac] = tap
            if state is not None:
                connections.ports[nic.number] = state.ports
            faults.step("card added")


def _add(context: MachineContext, card: CardRow, nic: Nic) -> tuple[int, CardState | None]:
    row = context.store.network(card.network)
    return add_card(context.manager, row, card_plan(context.last, card, nic))


@contextlib.contextmanager
def _choosing_ports(context: MachineContext, connections: Connections) -> Iterator[None]:
    """Choose a free port for each 0; no other process gets it in this block."""
    if all(port.host_port for port in context.asked_ports):
        yield
        return
    spec = context.spec
    own = [nic for nic in spec.nics if nic.number not in connections.ports]
    with chosen([port for nic in own for port in nic.ports]) as ports:
        left = iter(ports)
        found = {nic.number: tuple(next(left) for _ in nic.ports) for nic in own}
        _write_chosen(context, {**found, **connections.ports})
        yield


def _note_ports(context: MachineContext, changed: Mapping[int, Ports]) -> None:
    """Note the ports that are published now, of a machine that runs."""
    if any(not port.host_port for port in context.asked_ports):
        _write_chosen(context, {**context.published, **changed})
    else:
        context.chosen_ports.unlink(missing_ok=True)


def _write_chosen(context: MachineContext, published: Mapping[int, Ports]) -> None:
    """Note the numbers that were chosen for ports with the number 0, in their order."""
    numbers = [
        port.host_port
        for nic in context.spec.nics
        for asked, port in zip(nic.ports, published.get(nic.number, nic.ports), strict=True)
        if not asked.host_port
    ]
    new = context.chosen_ports.with_suffix(".new")
    new.write_text(json.dumps(numbers))
    new.rename(context.chosen_ports)
