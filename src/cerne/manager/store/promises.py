"""What of the host is promised to which machine: one row for each machine and resource.

A promise is written in the transaction that lets the machine have it, so that two commands never
promise the same thing. CPU time and memory are promised while a machine has a process, room for
disks as long as it exists.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from cerne.errors import CapacityError
from cerne.host.ledger import Published
from cerne.manager.store.database import Repository
from cerne.manager.store.rows import LIVE, Record, record_of
from cerne.units import MIB, counted, format_size


class Resource(StrEnum):
    """What the ledger counts."""

    CPU = "cpu"
    """Thousandths of a CPU."""
    MEMORY = "memory"
    """Bytes."""
    DISK = "disk"
    """Bytes."""


WHILE_RUNNING = (Resource.CPU, Resource.MEMORY)

Amounts = Mapping[Resource, int]

RATIOS: Mapping[Resource, float] = {Resource.CPU: 1.0, Resource.MEMORY: 1.0, Resource.DISK: 20.0}
"""How much of what there is may be promised. Disks grow as they are written to, and few fill."""

NETWORK_MEMORY = 80 * MIB
"""What the processes of a network need while it runs."""
_RUNS = "pid IS NOT NULL"

_MOST_NAMED = 3
"""How many machines an error names that hold what is missing."""


@dataclass(frozen=True, slots=True)
class Supply:
    """What the host has of one resource for all machines."""

    least: int
    """What it has at least, which is quickly found."""
    measure: Callable[[], int] | None = None
    """Finds what it has, which may take longer; None if `least` is all."""

    def whole(self) -> int:
        """What it has."""
        return self.least if self.measure is None else self.measure()


@dataclass(frozen=True, slots=True)
class Claim:
    """What a machine needs, and what the host has for all machines."""

    needs: Amounts
    supply: Mapping[Resource, Supply]


@dataclass(frozen=True, slots=True)
class Promise:
    """One row."""

    machine: str
    """The machine's name, or ``network`` and a network's."""
    resource: Resource
    amount: int


# A row of another resource was written by another program.
_KNOWN = frozenset(Resource)


class Promises(Repository):
    """The promises of one home, and how much may be promised."""

    def promises(self) -> list[Promise]:
        """All promises, the largest of each resource first."""
        rows = self._database.rows(
            "SELECT name, resource, amount FROM promises JOIN machines ON machine = id"
            " ORDER BY resource, amount DESC, name"
        )
        found = [Promise(row[0], Resource(row[1]), row[2]) for row in rows if row[1] in _KNOWN]
        networks = self._database.rows(f"SELECT name FROM networks WHERE {_RUNS} ORDER BY name")
        own = [Promise(f"network {row[0]}", Resource.MEMORY, NETWORK_MEMORY) for row in networks]
        return [*found, *own]

    def _record(self, record: Record) -> Record | None:
        """A machine's present record; None if it has been removed."""
        rows = self._database.rows("SELECT * FROM machines WHERE id = ?", (record.id,))
        return record_of(rows[0]) if rows else None

    def promised_to(self, record: Record) -> dict[Resource, int]:
        """What is promised to one machine."""
        rows = self._database.rows(
            "SELECT resource, amount FROM promises WHERE machine = ?", (record.id,)
        )
        return {Resource(row[0]): row[1] for row in rows if row[0] in _KNOWN}

    def ratios(self) -> dict[Resource, float]:
        """How much of each resource may be promised, as a part of what there is."""
        rows = self._database.rows("SELECT resource, ratio FROM overcommit")
        known = {Resource(row[0]): row[1] for row in rows if row[0] in _KNOWN}
        return {**RATIOS, **known}

    def set_ratios(self, ratios: Mapping[Resource, float]) -> None:
        """Change how much of these resources may be promised."""
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO overcommit (resource, ratio) VALUES (?, ?)",
                list(ratios.items()),
            )

    def elsewhere(self) -> list[Published]:
        """What other homes of this host have promised, the largest amounts of memory first."""
        found = [] if self._host is None else self._host.others()
        return sorted(found, key=lambda each: each.memory, reverse=True)

    @property
    def alone(self) -> str:
        """Why the promises of other homes are not counted, or these not by them; empty if so."""
        return "" if self._host is None else self._host.why_not

    def publish(self, record: Record) -> None:
        """Show other homes what is promised to a machine, if they do not see it yet."""
        if self._host is not None and not self._host.published(record.id):
            self._show(record)

    @contextlib.contextmanager
    def _promising(self, claims: Sequence[tuple[Record, Claim]]) -> Iterator[Sequence[Published]]:
        """Show other homes what is claimed, as long as this block decides about it, and afterwards.

        It gives what the others have promised. If it fails, they see again what they saw before.
        """
        shown = [each for each in claims if _while_running(each[1].needs)]
        if self._host is None or not shown:
            yield ()
            return
        changed = list(shown)
        with self._host.turn():
            try:
                for record, claim in shown:
                    held = self.promised_to(record)
                    if not _while_running(held):
                        changed.remove((record, claim))
                    # Until it is decided it has what it had, if that is more.
                    most = {
                        each: max(claim.needs.get(each, 0), held.get(each, 0))
                        for each in WHILE_RUNNING
                    }
                    self._host.publish(record.id, _published(record, most))
                yield self._host.others()
            except BaseException:
                for record, _ in shown:
                    self._show(record)
                raise
        for record, _ in changed:
            self._show(record)

    def _show(self, record: Record) -> None:
        """Show other homes what is promised to a machine now, or nothing."""
        if self._host is None:
            return
        held, present = self.promised_to(record), self._record(record)
        if present is not None and _while_running(held):
            self._host.publish(record.id, _published(present, held))
        else:
            self._host.withdraw(record.id)

    def require_free(self, name: str, claim: Claim) -> None:
        """Refuse what does not fit now beside all machines; `name` is what claims it.

        Raises:
            CapacityError: it does not fit.
        """
        elsewhere = self.elsewhere()
        with self._database.transaction(durable=False) as connection:
            for resource, amount in claim.needs.items():
                if amount:
                    supply = claim.supply[resource]
                    _require(connection, name, "", resource, amount, supply, elsewhere)

    def promise(self, record: Record, claim: Claim) -> None:
        """Change what is promised to a machine.

        Raises:
            CapacityError: the host has not so much; nothing is changed.
        """
        with (
            self._promising([(record, claim)]) as elsewhere,
            self._database.transaction() as connection,
        ):
            promise(connection, record, claim, elsewhere)

    def correct_promises(self, record: Record, needs: Amounts) -> None:
        """Write what is promised to a machine that runs as it was then, whether it fits or not."""
        states = _quoted(LIVE)
        query = f"SELECT 1 FROM machines WHERE id = ? AND generation = ? AND state IN ({states})"
        with self._database.transaction() as connection:
            if connection.execute(query, (record.id, record.generation)).fetchone():
                for resource, amount in needs.items():
                    _write(connection, record, resource, amount)
        self._show(record)


def promise(
    connection: sqlite3.Connection,
    record: Record,
    claim: Claim,
    elsewhere: Sequence[Published] = (),
) -> None:
    """Change what is promised to a machine, in the transaction that is open.

    `elsewhere` is what other homes have promised.

    Raises:
        CapacityError: the host has not so much.
    """
    for resource, amount in claim.needs.items():
        # What it has already is not asked for again: there may be too little of it meanwhile.
        if amount > _held(connection, record, resource):
            supply = claim.supply[resource]
            _require(connection, record.name, record.id, resource, amount, supply, elsewhere)
        _write(connection, record, resource, amount)


def promised_elsewhere(resource: Resource, elsewhere: Iterable[Published], limit: int) -> int:
    """What other homes have promised.

    Another user may lie: one counts for a quarter of `limit` at most, and all of them for half.
    """
    trusted = 0
    others: dict[int, int] = {}
    for each in elsewhere:
        amount = amount_of(resource, each)
        if each.trusted:
            trusted += amount
        else:
            others[each.user] = min(limit // 4, others.get(each.user, 0) + amount)
    return trusted + min(sum(others.values()), limit // 2)


def amount_of(resource: Resource, entry: Published) -> int:
    """The amount of a resource that another home has promised to a machine."""
    match resource:
        case Resource.CPU:
            return entry.cpu
        case Resource.MEMORY:
            return entry.memory
        case Resource.DISK:
            return 0


def label(entry: Published) -> str:
    """A machine of another home, for people."""
    where = f"in {entry.home}" if entry.trusted else f"of user {entry.user_name}"
    return f"{entry.name} {where}"


def _while_running(amounts: Amounts) -> bool:
    return any(amounts.get(each) for each in WHILE_RUNNING)


def _published(record: Record, amounts: Amounts) -> Published:
    return Published(
        record.name,
        amounts.get(Resource.CPU, 0),
        amounts.get(Resource.MEMORY, 0),
        record.process,
    )


def _held(connection: sqlite3.Connection, record: Record, resource: Resource) -> int:
    row = connection.execute(
        "SELECT amount FROM promises WHERE machine = ? AND resource = ?", (record.id, resource)
    ).fetchone()
    return row[0] if row else 0


def end_promises(connection: sqlite3.Connection, record: Record) -> None:
    """Remove what was promised to a machine while it ran, in the transaction that is open."""
    connection.execute(
        f"DELETE FROM promises WHERE machine = ? AND resource IN ({_quoted(WHILE_RUNNING)})",
        (record.id,),
    )


def _write(connection: sqlite3.Connection, record: Record, resource: Resource, amount: int) -> None:
    connection.execute(
        "DELETE FROM promises WHERE machine = ? AND resource = ?", (record.id, resource)
    )
    if amount:
        connection.execute("INSERT INTO promises VALUES (?, ?, ?)", (record.id, resource, amount))


def _require(
    connection: sqlite3.Connection,
    name: str,
    machine_id: str,
    resource: Resource,
    amount: int,
    supply: Supply,
    elsewhere: Sequence[Published],
) -> None:
    row = connection.execute(
        "SELECT ratio FROM overcommit WHERE resource = ?", (resource,)
    ).fetchone()
    ratio = row[0] if row else RATIOS[resource]
    promised = connection.execute(
        "SELECT coalesce(sum(amount), 0) FROM promises WHERE resource = ? AND machine != ?",
        (resource, machine_id),
    ).fetchone()[0]
    promised += _promised_to_networks(connection, resource)
    least = int(supply.least * ratio)
    if promised + promised_elsewhere(resource, elsewhere, least) + amount <= least:
        return
    has = supply.whole()
    limit = int(has * ratio)
    promised += promised_elsewhere(resource, elsewhere, limit)
    if promised + amount <= limit:
        return
    others = connection.execute(
        "SELECT name, amount FROM promises JOIN machines ON machine = id"
        " WHERE resource = ? AND id != ? ORDER BY amount DESC, name",
        (resource, machine_id),
    ).fetchall()
    free = max(0, limit - promised)
    own = [(each[0], each[1]) for each in others]
    foreign = [(label(each), amount_of(resource, each)) for each in elsewhere]
    all_ = sorted([*own, *foreign], key=lambda each: -each[1])
    holders = [f"{who} {format_amount(resource, held)}" for who, held in all_ if held]
    if len(holders) > _MOST_NAMED:
        holders[_MOST_NAMED:] = [f"{counted(len(holders) - _MOST_NAMED, 'other')}"]
    # A ratio of two digits with which it fits.
    ratio = -(-100 * (promised + amount) // max(1, has)) / 100
    raise CapacityError(
        f"{name} needs {format_amount(resource, amount)} of {_WORDS[resource]}, which is"
        f" {format_amount(resource, amount - free)} more than is free:"
        f" {format_amount(resource, free)} of {format_amount(resource, limit)}"
        + (f"; promised to {', '.join(holders)}" if holders else ""),
        hint=_hint(resource, others[0][0] if others else None, ratio),
        machine=name,
    )


def _promised_to_networks(connection: sqlite3.Connection, resource: Resource) -> int:
    if resource is not Resource.MEMORY:
        return 0
    count = connection.execute(f"SELECT count(*) FROM networks WHERE {_RUNS}").fetchone()[0]
    return int(count) * NETWORK_MEMORY


_WORDS = {Resource.CPU: "CPU time", Resource.MEMORY: "memory", Resource.DISK: "disk space"}
_OPTIONS = {
    Resource.CPU: "--cpu-guarantee",
    Resource.MEMORY: "--memory",
    Resource.DISK: "--disk or --data-disk",
}


def _hint(resource: Resource, holder: str | None, ratio: float) -> str:
    hints = []
    if holder is not None:
        command = "rm" if resource is Resource.DISK else "stop"
        hints.append(f"make room, such as: cerne {command} {holder}")
    hints.append(f"ask for less with {_OPTIONS[resource]}")
    hints.append(f"or promise more than there is: cerne capacity --overcommit {resource}={ratio:g}")
    return "; ".join(hints)


def format_amount(resource: Resource, amount: int) -> str:
    """An amount for people, such as ``1.5`` CPUs or ``2G``."""
    if resource is Resource.CPU:
        return f"{(Decimal(amount) / 1000).normalize():f}"
    return format_size(amount)


def _quoted(words: Iterable[str]) -> str:
    return ",".join(f"'{word}'" for word in sorted(words))
