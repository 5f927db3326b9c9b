"""Plans and states of networks as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pydantic import TypeAdapter

from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkRecord, NetworkState
from cerne.spec.ports import PublishedPort


@cache
def network_plan() -> TypeAdapter[NetworkPlan]:
    """Reads and writes a network's plan."""
    return TypeAdapter(NetworkPlan)


@cache
def network_record() -> TypeAdapter[NetworkRecord]:
    """Reads and writes a network's record."""
    return TypeAdapter(NetworkRecord)


@cache
def card_plan() -> TypeAdapter[CardPlan]:
    """Reads and writes a card's plan."""
    return TypeAdapter(CardPlan)


@cache
def card_state() -> TypeAdapter[CardState]:
    """Reads and writes a card's state."""
    return TypeAdapter(CardState)


@cache
def network_state() -> TypeAdapter[NetworkState]:
    """Reads and writes a network's state."""
    return TypeAdapter(NetworkState)


@dataclass(frozen=True, slots=True)
class HeldCard:
    """A card as a holder stores it, for a holder that comes after it."""

    number: int
    plan: CardPlan
    ports: tuple[PublishedPort, ...]
    """The ports that are published."""


@cache
def held_cards() -> TypeAdapter[list[HeldCard]]:
    """Reads and writes the cards that a holder has."""
    return TypeAdapter(list[HeldCard])
