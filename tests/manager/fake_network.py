"""Networks that are nothing but a sleeping process and files with their cards."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cerne.errors import CerneError
from cerne.host.process import ProcessIdentity
from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkRecord, NetworkState


@dataclass
class FakeNetworks:
    """What `cerne.network.network` is in tests; `failure` is raised by the next start or card.

    What there is of a network is in its directory, so that another process finds it.
    """

    started: list[NetworkPlan] = field(default_factory=list)
    repaired: list[list[str]] = field(default_factory=list)
    failure: CerneError | None = None

    def start_network(self, plan: NetworkPlan) -> NetworkRecord:
        if self.failure is not None:
            raise self.failure
        self.started.append(plan)
        found = _holder(plan.directory)
        if found is None:
            plan.directory.mkdir(parents=True, exist_ok=True)
            sleeper = subprocess.Popen(["/bin/sleep", "1000"])
            found = ProcessIdentity.of(sleeper.pid)
            assert found is not None
            (plan.directory / "holder").write_bytes(pickle.dumps(found))
        return NetworkRecord(found, plan.directory)

    def attach_network(self, plan: NetworkPlan, record: NetworkRecord) -> FakeNetwork:
        return FakeNetwork(self, plan, record)


@dataclass
class FakeNetwork:
    """One of them."""

    networks: FakeNetworks
    plan: NetworkPlan
    record: NetworkRecord

    def alive(self) -> bool:
        return self.record.holder.alive()

    def add_card(self, card: CardPlan) -> int:
        self._require()
        (self.plan.directory / f"card-{card.mac}").write_bytes(pickle.dumps(card))
        (self.plan.directory / f"lost-{card.mac}").unlink(missing_ok=True)
        return os.open("/dev/null", os.O_RDWR)

    def set_card(self, card: CardPlan) -> CardState:
        self._require()
        assert (self.plan.directory / f"card-{card.mac}").exists()
        (self.plan.directory / f"card-{card.mac}").write_bytes(pickle.dumps(card))
        return _state(card)

    def remove_card(self, mac: str) -> None:
        (self.plan.directory / f"card-{mac}").unlink(missing_ok=True)

    def cards(self) -> tuple[CardState, ...]:
        return self.state().cards

    def state(self) -> NetworkState:
        cards = tuple(
            replace(
                _state(card),
                connected=not (self.plan.directory / f"lost-{card.mac}").exists(),
            )
            for card in cards_in(self.plan.directory)
        )
        return NetworkState(cards, {"holder": self.record.holder.pid}, (), ())

    def repair(self, cards: Iterable[CardPlan]) -> tuple[str, ...]:
        if not self.alive():
            end(self.plan.directory)
            self.record = self.networks.start_network(self.plan)
        wanted = {card.mac: card for card in cards}
        self.networks.repaired.append([*wanted])
        missing = wanted.keys() - {card.mac for card in cards_in(self.plan.directory)}
        for mac in missing:
            (self.plan.directory / f"card-{mac}").write_bytes(pickle.dumps(wanted[mac]))
            (self.plan.directory / f"lost-{mac}").touch()
        return tuple(f"the card {mac} was missing" for mac in sorted(missing))

    def stop(self) -> None:
        end(self.plan.directory)

    def _require(self) -> None:
        if self.networks.failure is not None:
            raise self.networks.failure
        assert self.alive()


def cards_in(directory: Path) -> list[CardPlan]:
    """The cards on the network of this directory, by their names."""
    files = directory.glob("card-*")
    found: list[CardPlan] = [pickle.loads(file.read_bytes()) for file in files]  # noqa: S301 - ours
    return sorted(found, key=lambda card: (card.name, card.mac))


def end(directory: Path) -> None:
    """End the network of this directory, and remove what there is of it."""
    holder = _holder(directory)
    if holder is not None:
        holder.send(signal.SIGKILL)
        holder.wait(10)
    for path in directory.glob("*"):
        path.unlink()


def running(runtime: Path) -> list[Path]:
    """The directories of the networks that run, in a home's runtime directory."""
    return [each for each in (runtime / "n").glob("*") if _holder(each) is not None]


def _holder(directory: Path) -> ProcessIdentity | None:
    try:
        data = (directory / "holder").read_bytes()
    except FileNotFoundError:
        return None
    found: ProcessIdentity = pickle.loads(data)  # noqa: S301 - it is our own
    return found if found.alive() else None


def _state(card: CardPlan) -> CardState:
    ports = tuple(
        port if port.host_port else replace(port, host_port=40000 + port.guest_port)
        for port in card.ports
    )
    return CardState(card, f"tap-{card.mac[-2:]}", ports, connected=True)
