"""The addresses and the published ports of one card: given, and refused if another has them."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from cerne.errors import CapacityError, ConflictError, InputError
from cerne.manager.store.rows import CardRow, NetworkRow
from cerne.network.mac import interface_identifier, mac_address
from cerne.network.names import OWN_NAMES

_WILDCARDS = frozenset({"0.0.0.0", "::"})

Place = tuple[str, str, int]
"""The ID and the name of a machine, and the number of its card."""


def settle_card(
    connection: sqlite3.Connection,
    place: Place,
    nic: Mapping[str, object],
    network: NetworkRow,
    present: CardRow | None,
) -> None:
    """Bring a card's rows in line with what is asked for, in the open transaction.

    Raises:
        InputError: the network has not the address that is asked for.
        ConflictError: another machine has an address or a published port.
        CapacityError: the network has no free address.
    """
    machine_id, name, number = place
    if present is None or present.network != network.id:
        require_name(connection, network, machine_id, name)
    if present is None or present.network != network.id or not _is_asked(nic, present):
        _give_addresses(connection, machine_id, number, nic, network)
    _write_ports(connection, machine_id, name, number, nic)


def require_name(
    connection: sqlite3.Connection, network: NetworkRow, machine_id: str, name: str
) -> None:
    """Refuse a machine's name that leads to another one on a network; DNS knows no capitals.

    Raises:
        ConflictError: another machine on it has the name, or the network itself.
    """
    if network.ipv4 is None:
        return
    others = connection.execute(
        "SELECT name FROM cards JOIN machines ON machine = id WHERE network = ? AND machine != ?",
        (network.id, machine_id),
    )
    same = [row[0] for row in others if row[0].lower() == name.lower()]
    if same or name.lower() in OWN_NAMES:
        owner = f"the machine {same[0]}" if same else "itself"
        raise ConflictError(
            f"a machine on the network {network.name} is not named {name}: the network has that"
            f" name for {owner}",
            hint="give the machine another name",
        )


def _is_asked(nic: Mapping[str, object], card: CardRow) -> bool:
    """Whether a card has the addresses that are asked for now."""
    four, six = _asked_addresses(nic)
    return all(
        asked is None or str(asked) == present
        for asked, present in ((nic.get("mac"), card.mac), (four, card.ipv4), (six, card.ipv6))
    )


def _asked_addresses(nic: Mapping[str, object]) -> tuple[IPv4Address | None, IPv6Address | None]:
    four, six = None, None
    for text in str(nic.get("address") or "").split(","):
        if text:
            address = ip_address(text)
            four = address if isinstance(address, IPv4Address) else four
            six = address if isinstance(address, IPv6Address) else six
    return four, six


def _give_addresses(
    connection: sqlite3.Connection,
    machine_id: str,
    number: int,
    nic: Mapping[str, object],
    network: NetworkRow,
) -> None:
    """Give a card the addresses that are asked for, or free ones."""
    mac = str(nic.get("mac") or mac_address(machine_id, number))
    four, six = _asked_addresses(nic)
    address4 = _free4(connection, machine_id, network, four)
    address6 = _free6(network, six, mac)
    connection.execute("DELETE FROM cards WHERE machine = ? AND number = ?", (machine_id, number))
    for column, value in (("mac", mac), ("ipv4", address4), ("ipv6", address6)):
        _require_unused(connection, network, column, value)
    connection.execute(
        "INSERT INTO cards (machine, number, network, mac, ipv4, ipv6) VALUES (?, ?, ?, ?, ?, ?)",
        (machine_id, number, network.id, mac, address4, address6),
    )


def _free4(
    connection: sqlite3.Connection,
    machine_id: str,
    network: NetworkRow,
    asked: IPv4Address | None,
) -> str | None:
    if network.ipv4 is None:
        _refuse_address(network, asked)
        return None
    subnet = IPv4Network(network.ipv4)
    if asked is not None:
        _require_inside(network, subnet, asked)
        return str(asked)
    rows = connection.execute("SELECT ipv4 FROM cards WHERE network = ?", (network.id,))
    taken = {row[0] for row in rows} | {str(network.gateway4)}
    for address in subnet.hosts():
        if str(address) not in taken:
            return str(address)
    raise CapacityError(
        f"the network {network.name} has no free address in {subnet}",
        hint="remove a machine of it, or make a larger one: cerne network create NAME"
        " --ipv4 SUBNET",
        machine=machine_id,
    )


def _free6(network: NetworkRow, asked: IPv6Address | None, mac: str) -> str | None:
    if network.ipv6 is None:
        _refuse_address(network, asked)
        return None
    subnet = IPv6Network(network.ipv6)
    if asked is not None:
        _require_inside(network, subnet, asked)
        return str(asked)
    # The address that a guest takes by itself (RFC 4862, with RFC 4291's identifiers).
    return str(subnet[interface_identifier(mac)])


def _refuse_address(network: NetworkRow, asked: object) -> None:
    if asked is not None:
        raise InputError(
            f"{asked} was asked for, and the network {network.name} gives no such addresses",
            hint="leave the address out, and set it in the guest",
        )


def _require_inside(
    network: NetworkRow, subnet: IPv4Network | IPv6Network, asked: IPv4Address | IPv6Address
) -> None:
    """Refuse an address that no machine of a subnet can have."""
    own = {subnet.network_address, network.gateway4, network.gateway6}
    if isinstance(subnet, IPv4Network):
        own.add(subnet.broadcast_address)
    if asked not in subnet or asked in own:
        raise InputError(
            f"{asked} is not an address for a machine on the network {network.name}",
            hint=f"take another one of {subnet}, or leave the address out",
        )


def _require_unused(
    connection: sqlite3.Connection, network: NetworkRow, column: str, value: str | None
) -> None:
    if value is None:
        return
    other = connection.execute(
        f"SELECT name FROM cards JOIN machines ON machine = id WHERE network = ? AND {column} = ?",
        (network.id, value),
    ).fetchone()
    if other is not None:
        raise ConflictError(
            f"{other[0]} has the address {value} on the network {network.name} already",
            hint="ask for another address, or for none",
        )


def _write_ports(
    connection: sqlite3.Connection,
    machine_id: str,
    name: str,
    number: int,
    nic: Mapping[str, object],
) -> None:
    """Note a card's published ports.

    Raises:
        ConflictError: another machine publishes one of them.
    """
    connection.execute(
        "DELETE FROM card_ports WHERE machine = ? AND number = ?", (machine_id, number)
    )
    ports = nic.get("ports")
    for port in ports if isinstance(ports, list) else []:
        address, host_port, protocol = port["host_address"], port["host_port"], port["protocol"]
        if host_port == 0:
            continue
        taken = connection.execute(
            "SELECT name, address FROM card_ports JOIN machines ON machine = id"
            " WHERE protocol = ? AND port = ?",
            (protocol, host_port),
        )
        for other, other_address in taken:
            if _meet(address, other_address):
                raise ConflictError(
                    f"{other} publishes port {other_address}:{host_port}/{protocol} of this host"
                    " already",
                    hint=f"publish another port of this host for {name}, or remove that one:"
                    f" cerne publish rm {other} {host_port}",
                )
        connection.execute(
            "INSERT INTO card_ports (machine, number, protocol, address, port)"
            " VALUES (?, ?, ?, ?, ?)",
            (machine_id, number, protocol, address, host_port),
        )


def _meet(one: str, other: str) -> bool:
    """Whether a port at one address of the host is also one at the other."""
    return one == other or ((":" in one) == (":" in other) and bool({one, other} & _WILDCARDS))


def require_apart(row: NetworkRow, other: NetworkRow) -> None:
    """Refuse a network whose subnets overlap with another's.

    Raises:
        ConflictError: they do.
    """
    pairs = (
        (row.ipv4 and IPv4Network(row.ipv4), other.ipv4 and IPv4Network(other.ipv4)),
        (row.ipv6 and IPv6Network(row.ipv6), other.ipv6 and IPv6Network(other.ipv6)),
    )
    for own, theirs in pairs:
        if own and theirs and own.overlaps(theirs):
            raise ConflictError(
                f"the subnet {own} overlaps with {theirs} of the network {other.name}",
                hint="take another one, or leave it out: Cerne picks a free one",
            )
