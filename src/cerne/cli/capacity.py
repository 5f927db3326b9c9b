"""The command that shows what this host has for machines, and what is promised to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.options import JsonOption
from cerne.cli.output import print_json, print_table, printable
from cerne.errors import InputError
from cerne.units import counted, format_size

if TYPE_CHECKING:
    from cerne.client import Capacity

_CPU = "cpu"
_MEMORY = "memory"
_MOST_NAMED = 5


def balance(json: JsonOption = False) -> None:
    """Ask guests for memory that this host lacks, or give back what it has to spare."""
    from cerne.client import connect

    found = connect().balance()
    if json:
        print_json(
            {
                "available_bytes": found.available,
                "reserve_bytes": found.reserve,
                "changes": [
                    {
                        "machine": each.machine,
                        "before_bytes": each.before,
                        "after_bytes": each.after,
                    }
                    for each in found.changes
                ],
            }
        )
        return
    if found.changes:
        rows = [
            (each.machine, format_size(each.before), format_size(each.after))
            for each in found.changes
        ]
        print_table(("NAME", "MEMORY", "ASKED"), rows)
    print(
        f"{format_size(found.available)} of memory are available, and"
        f" {format_size(found.reserve)} are kept for the host"
    )


def capacity(
    overcommit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RESOURCE=RATIO",
            help="How much of cpu, memory or disk may be promised, such as memory=1.5;"
            " may be repeated.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what this host has for machines, what is promised to them, and what is free."""
    from cerne.client import connect

    host = connect()
    if overcommit:
        host.set_overcommit(dict(_ratio(text) for text in overcommit))
    found = host.capacity()
    if json:
        print_json(_as_json(found))
        return
    headings = ("RESOURCE", "HAS", "RESERVE", "RATIO", "PROMISED", "OTHERS", "FREE")
    rows = [
        (
            account.resource,
            *(_amount(account.resource, each) for each in (account.has, account.reserve)),
            f"{account.ratio:g}",
            _amount(account.resource, account.promised),
            _amount(account.resource, account.elsewhere),
            _amount(account.resource, account.free),
        )
        for account in found.accounts
    ]
    print_table(headings, rows)
    for pages in found.hugepages:
        print(
            f"node {pages.node}: {pages.free} of {counted(pages.total, 'hugepage')} of"
            f" {format_size(pages.size)} are free, for machines with --memory-hugepages"
        )
    print(f"Machines may be pinned to {found.topology.words}.")
    holders = [each for each in found.promises if each.resource == _MEMORY]
    if holders:
        # A template that is being made is a machine too, which `cerne ls` does not show.
        named = [f"{each.machine} {format_size(each.amount)}" for each in holders[:_MOST_NAMED]]
        if len(holders) > _MOST_NAMED:
            named.append(counted(len(holders) - _MOST_NAMED, "other"))
        print(printable(f"Memory is promised to {', '.join(named)}."))
    print(printable(_counted(found)))


def _counted(found: Capacity) -> str:
    """Whose machines are counted."""
    if found.alone:
        return (
            f"It counts the machines of this home alone, and other homes do not count these:"
            f" {found.alone}."
        )
    if not found.elsewhere:
        return "No machine of another home runs."
    amounts: dict[str, int] = {}
    for each in found.elsewhere:
        owner = f"{each.home}" if each.trusted else f"user {each.user_name}"
        amounts[owner] = amounts.get(owner, 0) + each.memory
    homes = ", ".join(f"{owner} {format_size(amount)}" for owner, amount in amounts.items())
    return f"OTHERS is what other homes have promised; memory: {homes}."


def _ratio(text: str) -> tuple[str, float]:
    resource, _, number = text.partition("=")
    try:
        return resource, float(number)
    except ValueError as error:
        raise InputError(
            f"{text!r} is not a resource with a ratio", hint="write it as memory=1.5"
        ) from error


def _amount(resource: str, amount: int) -> str:
    return f"{amount / 1000:g}" if resource == _CPU else format_size(amount)


def _as_json(found: Capacity) -> dict[str, object]:
    """The ledger in plain types: CPUs, and bytes of all else."""

    def number(resource: str, amount: int) -> float:
        return amount / 1000 if resource == _CPU else amount

    return {
        "resources": {
            account.resource: {
                "has": number(account.resource, account.has),
                "reserve": number(account.resource, account.reserve),
                "ratio": account.ratio,
                "promised": number(account.resource, account.promised),
                "others": number(account.resource, account.elsewhere),
                "free": number(account.resource, account.free),
            }
            for account in found.accounts
        },
        "promises": [
            {
                "machine": each.machine,
                "resource": each.resource,
                "amount": number(each.resource, each.amount),
            }
            for each in found.promises
        ],
        "others": [
            {
                "machine": each.name,
                "home": each.home,
                "user": each.user,
                "cpu": number(_CPU, each.cpu),
                "memory": each.memory,
            }
            for each in found.elsewhere
        ],
        "hugepages": [
            {"node": pages.node, "size": pages.size, "total": pages.total, "free": pages.free}
            for pages in found.hugepages
        ],
        "placement": {
            "cpus": sorted(found.topology.allowed),
            "nodes": {
                str(node.number): sorted(node.cpus) for node in found.topology.nodes if node.allowed
            },
        },
        "alone": found.alone or None,
    }
