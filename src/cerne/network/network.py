"""Networks: each is a network namespace with a bridge, kept by one process, its holder.

The holder is a child of no command. A command finds it by its record, and speaks to it by a socket
in the network's directory (`cerne.network.control`).
"""

from __future__ import annotations

from collections.abc import Iterable

from cerne.errors import HostError
from cerne.network.plan import CardPlan, CardState, NetworkPlan, NetworkRecord, NetworkState


def start_network(plan: NetworkPlan) -> NetworkRecord:
    """Start a network's holder, or find the one that runs in its directory; return its record.

    If it fails, nothing is left. If the command is killed, the next call finds what was started.

    Raises:
        HostError: the host lacks what it needs, or forbids it; the hint says what helps.
        InputError, ConflictError: the subnets or the parent collide with what the host has.
    """
    raise HostError(f"the network {plan.name} did not start")


def attach_network(plan: NetworkPlan, record: NetworkRecord) -> Network:
    """The network of a record, running or not; `plan` is what `repair` makes it of again."""
    return Network(plan, record)


class Network:
    """A network that was started."""

    def __init__(self, plan: NetworkPlan, record: NetworkRecord) -> None:
        self._plan = plan
        self._record = record

    @property
    def record(self) -> NetworkRecord:
        """Its present record, which `repair` may change: store it again then."""
        return self._record

    def alive(self) -> bool:
        """Whether its holder runs."""
        return self._record.holder.alive()

    def add_card(self, card: CardPlan) -> int:
        """Make a card's tap, rules, names and ports; return the tap's descriptor.

        The tap has one queue and virtio-net headers of 12 bytes, as `cerne.network.tap.open_tap`
        gives it. It exists while the descriptor is open. A card of the same MAC whose tap is
        closed is replaced.

        Raises:
            ConflictError: a port is in use, or another card has its MAC, address or name.
            EngineError: the network does not answer, or failed.
        """
        raise HostError(f"the network {self._plan.name} does not run")

    def set_card(self, card: CardPlan) -> CardState:
        """Change what a card may do: ports, egress, host ports, rate, name; at once.

        Connections through ports that stay are kept. The MAC names the card.

        Raises:
            NotFoundError: there is no such card.
            ConflictError: a port is in use; nothing has changed.
        """
        raise HostError(f"the network {self._plan.name} does not run")

    def remove_card(self, mac: str) -> None:
        """Remove a card's ports, names and rules, and its tap when it is closed; or do nothing."""
        raise HostError(f"the network {self._plan.name} does not run")

    def cards(self) -> tuple[CardState, ...]:
        """Its cards."""
        return self.state().cards

    def state(self) -> NetworkState:
        """What it has, and what is wrong with it.

        A network whose holder does not run has no cards, and says so among its faults.
        """
        raise HostError(f"the network {self._plan.name} does not run")

    def repair(self, cards: Iterable[CardPlan]) -> tuple[str, ...]:
        """Make all again that is missing, of a network that runs or not; return what was done.

        Machines that run keep their cards as long as their namespace exists. Of those that lost
        it, `cards()` has `connected` false: their machines need `add_card` and the new descriptor.

        Raises:
            HostError: as `start_network`.
        """
        raise HostError(f"the network {self._plan.name} does not run")

    def stop(self) -> None:
        """End all its processes and remove all that it has made on the host; or do nothing."""
        raise HostError(f"the network {self._plan.name} does not run")
