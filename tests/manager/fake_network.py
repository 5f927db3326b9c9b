"""Networks that are nothing but a sleeping process and a note of their cards."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cerne.errors import CerneError
from cerne.host.process import ProcessIdentity
from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkRecord, NetworkState


@dataclass
class FakeNetworks:
    """What `cerne.network.network` is in tests; `failure` is raised by the next start or card."""

    cards: dict[Path, dict[str, CardPlan]] = field(default_factory=dict)
    started: list[NetworkPlan] = field(default_factory=list)
    repaired: list[list[str]] = field(default_factory=list)
    failure: CerneError | None = None
    holders: dict[Path, subprocess.Popen[bytes]] = field(default_factory=dict)
    taps: list[int] = field(default_factory=list)

    def start_network(self, plan: NetworkPlan) -> NetworkRecord:
        if self.failure is not None:
            raise self.failure
        self.started.append(plan)
        plan.directory.mkdir(parents=True, exist_ok=True)
        self.cards.setdefault(plan.directory, {})
        holder = subprocess.Popen(["/bin/sleep", "1000"])
        self.holders[plan.directory] = holder
        identity = ProcessIdentity.of(holder.pid)
        assert identity is not None
        return NetworkRecord(identity, plan.directory)

    def attach_network(self, plan: NetworkPlan, record: NetworkRecord) -> FakeNetwork:
        return FakeNetwork(self, plan, record)

    def kill(self, directory: Path) -> None:
        holder = self.holders.pop(directory)
        holder.kill()
        holder.wait()
        self.cards.pop(directory)

    def close(self) -> None:
        for directory in list(self.holders):
            self.kill(directory)


@dataclass
class FakeNetwork:
    networks: FakeNetworks
    plan: NetworkPlan
    record: NetworkRecord

    @property
    def _cards(self) -> dict[str, CardPlan]:
        return self.networks.cards[self.plan.directory]

    def alive(self) -> bool:
        return self.record.holder.alive()

    def add_card(self, card: CardPlan) -> int:
        if self.networks.failure is not None:
            raise self.networks.failure
        self._cards[card.mac] = card
        tap = os.open("/dev/null", os.O_RDWR)
        self.networks.taps.append(tap)
        return tap

    def set_card(self, card: CardPlan) -> CardState:
        if self.networks.failure is not None:
            raise self.networks.failure
        assert card.mac in self._cards
        self._cards[card.mac] = card
        return _state(card)

    def remove_card(self, mac: str) -> None:
        self._cards.pop(mac, None)

    def cards(self) -> tuple[CardState, ...]:
        return self.state().cards

    def state(self) -> NetworkState:
        cards = tuple(_state(card) for card in self._cards.values())
        return NetworkState(cards, {"holder": self.record.holder.pid}, (), ())

    def repair(self, cards: Iterable[CardPlan]) -> tuple[str, ...]:
        if not self.alive():
            self.record = self.networks.start_network(self.plan)
        found = {card.mac: card for card in cards}
        self.networks.repaired.append([*found])
        done = tuple(f"the card {mac} was missing" for mac in found.keys() - self._cards.keys())
        self._cards.update(found)
        return done

    def stop(self) -> None:
        if self.plan.directory in self.networks.holders:
            self.networks.kill(self.plan.directory)


def _state(card: CardPlan) -> CardState:
    ports = tuple(
        port if port.host_port else replace(port, host_port=40000 + port.guest_port)
        for port in card.ports
    )
    return CardState(card, f"tap-{card.mac[-2:]}", ports, connected=True)
