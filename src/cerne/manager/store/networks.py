"""Networks with names, and the cards of machines on them: their addresses and published ports.

A card's rows follow from the specification of its machine. Each transaction that writes a
specification brings them in line with it (`settle_cards`), and gives a new card addresses, which
stay until the card goes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping

from cerne.errors import ConflictError, NotFoundError
from cerne.host.process import ProcessIdentity
from cerne.manager.store.database import Repository
from cerne.manager.store.events import note_of
from cerne.manager.store.rows import LIVE, CardRow, NetworkRow, Subject, moment_of, process_of
from cerne.spec.network import is_named

_LIVE = ",".join(f"'{state}'" for state in sorted(LIVE))
_CARDS = "SELECT machine, number, network, mac, ipv4, ipv6 FROM cards"


class Networks(Repository):
    """The networks of one home, and the cards on them."""

    def add_network(self, row: NetworkRow) -> None:
        """Add a network.

        Raises:
            ConflictError: its name is in use, or its subnets overlap with another network's.
        """
        with self._database.transaction() as connection:
            from cerne.manager.store.cards import require_apart

            for other in _networks(connection):
                if other.name == row.name:
                    raise ConflictError(
                        f"there is a network named {row.name} already",
                        hint=f"take another name, or remove that one: cerne network rm {row.name}",
                    )
                require_apart(row, other)
            connection.execute(
                "INSERT INTO networks (id, name, spec, ipv4, ipv6, created)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (row.id, row.name, row.spec, row.ipv4, row.ipv6, row.created),
            )
            note_of(connection, Subject.NETWORK, row.id, row.name, "created")

    def networks(self) -> list[NetworkRow]:
        """All networks, by their names."""
        rows = self._database.rows("SELECT * FROM networks ORDER BY name")
        return [_network_row(row) for row in rows]

    def network(self, name: str) -> NetworkRow:
        """The network of this name, or else of this ID.

        Raises:
            NotFoundError: there is none.
        """
        rows = self._database.rows(
            "SELECT * FROM networks WHERE name = ?1 OR id = ?1 ORDER BY name = ?1 DESC", (name,)
        )
        if not rows:
            raise unknown_network(name)
        return _network_row(rows[0])

    def remove_network(self, row: NetworkRow) -> None:
        """Forget a network.

        Raises:
            ConflictError: a machine has a card on it.
        """
        with self._database.transaction() as connection:
            _require_unused(connection, row)
            if connection.execute("DELETE FROM networks WHERE id = ?", (row.id,)).rowcount:
                note_of(connection, Subject.NETWORK, row.id, row.name, "removed")

    def require_unused_network(self, row: NetworkRow) -> None:
        """Refuse a network that a machine has a card on.

        Raises:
            ConflictError: there is such a machine.
        """
        with self._database.transaction(durable=False) as connection:
            _require_unused(connection, row)

    def set_holder(self, row: NetworkRow, holder: ProcessIdentity | None) -> None:
        """Note which process keeps a network; None for none."""
        values = (None,) * 3 if holder is None else (holder.pid, holder.start_time, holder.boot_id)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE networks SET pid = ?, start_time = ?, boot_id = ? WHERE id = ?",
                (*values, row.id),
            )
            kind = "stopped" if holder is None else "started"
            note_of(connection, Subject.NETWORK, row.id, row.name, kind)

    def cards_of(self, machine_id: str) -> dict[int, CardRow]:
        """The cards of a machine on networks with names, by their numbers."""
        rows = self._database.rows(f"{_CARDS} WHERE machine = ?", (machine_id,))
        return {row["number"]: CardRow(*row) for row in rows}

    def all_cards(self) -> dict[str, list[CardRow]]:
        """The cards of all machines on networks with names, by the machines' IDs."""
        found: dict[str, list[CardRow]] = {}
        for row in self._database.rows(f"{_CARDS} ORDER BY machine, number"):
            found.setdefault(row["machine"], []).append(CardRow(*row))
        return found

    def cards_on(self, network_id: str, *, live: bool = False) -> list[CardRow]:
        """The cards on a network; with `live` those of machines that have a process, as noted."""
        where = f" AND state IN ({_LIVE})" if live else ""
        rows = self._database.rows(
            "SELECT machine, number, network, mac, ipv4, ipv6 FROM cards"
            f" JOIN machines ON machine = id WHERE network = ?{where} ORDER BY machine, number",
            (network_id,),
        )
        return [CardRow(*row) for row in rows]


def _require_unused(connection: sqlite3.Connection, row: NetworkRow) -> None:
    users = connection.execute(
        "SELECT DISTINCT machines.name FROM cards JOIN machines ON machine = machines.id"
        " WHERE network = ? ORDER BY machines.name",
        (row.id,),
    ).fetchall()
    if users:
        names = ", ".join(user[0] for user in users)
        raise ConflictError(
            f"the network {row.name} is in use by {names}",
            hint=f"stop each machine, and disconnect it: cerne stop {users[0][0]}; cerne network"
            f" disconnect {row.name} {users[0][0]}\nor remove it: cerne rm --force {users[0][0]}",
        )


def settle_cards(connection: sqlite3.Connection, machine_id: str, name: str, spec: str) -> None:
    """Bring the cards of a machine in line with its specification, in the open transaction.

    Raises:
        NotFoundError: there is no network of this name.
        InputError: the network has not the address that is asked for.
        ConflictError: another machine has an address or a published port.
        CapacityError: the network has no free address.
    """
    wanted = _named_nics(spec)
    present = {
        row["number"]: CardRow(*row)
        for row in connection.execute(f"{_CARDS} WHERE machine = ?", (machine_id,))
    }
    for number in present.keys() - wanted.keys():
        connection.execute(
            "DELETE FROM cards WHERE machine = ? AND number = ?", (machine_id, number)
        )
    for number, nic in sorted(wanted.items()):
        # Imported here, because few machines have such cards.
        from cerne.manager.store.cards import settle_card

        network = _network_named(connection, str(nic["network"]))
        settle_card(connection, (machine_id, name, number), nic, network, present.get(number))


def require_name_on_networks(connection: sqlite3.Connection, machine_id: str, name: str) -> None:
    """Refuse a new name of a machine that leads to another one on its networks.

    Raises:
        ConflictError: it does.
    """
    networks = connection.execute(
        "SELECT DISTINCT networks.* FROM networks JOIN cards ON network = networks.id"
        " WHERE machine = ?",
        (machine_id,),
    ).fetchall()
    for row in networks:
        # Imported here, because few machines have such cards.
        from cerne.manager.store.cards import require_name

        require_name(connection, _network_row(row), machine_id, name)


def _named_nics(spec: str) -> dict[int, Mapping[str, object]]:
    """The cards of a stored specification that are on networks with names, by their numbers.

    It is read without its model, because `cerne.manager.store` loads none.
    """
    try:
        nics = json.loads(spec)["nics"]
        return {
            0 if nic["slot"] is None else nic["slot"] + 1: nic
            for nic in nics
            if is_named(nic["network"])
        }
    except (ValueError, KeyError, TypeError):
        # A specification of an older version has no such networks.
        return {}


def _networks(connection: sqlite3.Connection) -> Iterable[NetworkRow]:
    return [_network_row(row) for row in connection.execute("SELECT * FROM networks")]


def _network_named(connection: sqlite3.Connection, name: str) -> NetworkRow:
    row = connection.execute("SELECT * FROM networks WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise unknown_network(name)
    return _network_row(row)


def unknown_network(name: str) -> NotFoundError:
    """The error that there is no network of this name."""
    return NotFoundError(
        f"there is no network named {name}",
        hint=f"make it: cerne network create {name}; or see: cerne network ls",
    )


def _network_row(row: sqlite3.Row) -> NetworkRow:
    return NetworkRow(
        id=row["id"],
        name=row["name"],
        spec=row["spec"],
        ipv4=row["ipv4"],
        ipv6=row["ipv6"],
        created=moment_of(row["created"]),
        holder=process_of(row),
    )
