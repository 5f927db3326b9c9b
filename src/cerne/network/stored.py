"""Plans and states of networks as JSON."""

from __future__ import annotations

from functools import cache

from pydantic import TypeAdapter

from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkRecord, NetworkState


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


@cache
def numbered_cards() -> TypeAdapter[list[tuple[int, CardPlan]]]:
    """Reads and writes the cards that a holder has, with their numbers."""
    return TypeAdapter(list[tuple[int, CardPlan]])
