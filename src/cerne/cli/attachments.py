"""Commands for a machine's additional disks and network cards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.options import JsonOption, NameArgument, number
from cerne.cli.output import print_json, print_table
from cerne.units import format_size

if TYPE_CHECKING:
    from cerne.client import Machine
    from cerne.spec.disk import Disk

disk_app = typer.Typer(
    help="Disks of machines: attach, detach and list them, also while the machine runs.",
    no_args_is_help=True,
)
nic_app = typer.Typer(
    help="Network cards of machines: attach, detach and list them, also while the machine runs.",
    no_args_is_help=True,
)

ForceOption = Annotated[
    bool, typer.Option("--force", "-f", help="Remove it without asking the guest.")
]
TimeoutOption = Annotated[
    str,
    typer.Option("--timeout", metavar="TIME", help="How long the guest may take to release it."),
]


@disk_app.command("attach")
def attach_disk(
    name: NameArgument,
    disk: Annotated[
        str,
        typer.Argument(
            metavar="SIZE|PATH[:ro][:format=raw]",
            help="A new empty disk of this size, or a file of this host.",
        ),
    ],
    serial: Annotated[
        str | None,
        typer.Option(
            metavar="SERIAL", help="The serial that the guest sees; made up if not given."
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="The guest may only read it.")
    ] = False,
) -> None:
    """Add a disk to a machine, and print its serial."""
    from cerne.client import connect

    print(connect().get(name).attach_disk(disk, serial, read_only=read_only).serial)


@disk_app.command("detach")
def detach_disk(
    name: NameArgument,
    disk: Annotated[str, typer.Argument(metavar="SERIAL|SLOT", help="The disk, as listed.")],
    force: ForceOption = False,
    timeout: TimeoutOption = "10s",
) -> None:
    """Detach a disk from a machine, and print where the disk is; its file is kept."""
    from cerne.client import connect
    from cerne.units import parse_duration

    limit = parse_duration(timeout)
    print(connect().get(name).detach_disk(disk, force=force, timeout=limit))


@disk_app.command("ls")
def list_disks(name: NameArgument, json: JsonOption = False) -> None:
    """List the disks of a machine, without its root disk."""
    from cerne.client import connect

    machine = connect().get(name)
    disks = machine.spec.data_disks
    if json:
        print_json([_summary(machine, disk) for disk in disks])
        return
    rows = [
        (
            str(disk.number),
            disk.serial,
            "" if disk.size is None else format_size(disk.size),
            disk.read_as,
            "read-only" if disk.read_only else "",
            str(machine.disk_file(disk)),
        )
        for disk in disks
    ]
    print_table(("SLOT", "SERIAL", "SIZE", "FORMAT", "MODE", "FILE"), rows)


@nic_app.command("attach")
def attach_nic(
    name: NameArgument,
    network: Annotated[
        str, typer.Option(metavar="NETWORK", help="user, tap:INTERFACE, or the name of a network.")
    ] = "user",
) -> None:
    """Add a network card to a machine, and print its number."""
    from cerne.client import connect

    print(connect().get(name).attach_nic(network).number)


@nic_app.command("detach")
def detach_nic(
    name: NameArgument,
    number: Annotated[
        int, typer.Argument(metavar="NUMBER", help="The card, as listed.", parser=number)
    ],
    force: ForceOption = False,
    timeout: TimeoutOption = "10s",
) -> None:
    """Detach a network card from a machine, and print its number."""
    from cerne.client import connect
    from cerne.units import parse_duration

    limit = parse_duration(timeout)
    connect().get(name).detach_nic(number, force=force, timeout=limit)
    print(number)


@nic_app.command("ls")
def list_nics(name: NameArgument, json: JsonOption = False) -> None:
    """List the network cards of a machine; no command detaches card 0."""
    from cerne.client import connect

    nics = connect().get(name).nics()
    if json:
        print_json([{"number": number, "mac": mac} for number, mac in nics.items()])
    else:
        print_table(("NUMBER", "ADDRESS"), [(str(number), mac) for number, mac in nics.items()])


def _summary(machine: Machine, disk: Disk) -> dict[str, object]:
    file: Path = machine.disk_file(disk)
    return {
        "serial": disk.serial,
        "slot": disk.number,
        "size_bytes": disk.size,
        "format": disk.read_as,
        "read_only": disk.read_only,
        "own": disk.own,
        "file": str(file),
    }
