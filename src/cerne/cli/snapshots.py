"""Commands about snapshots of machines, and ``fork``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.complete import snapshot_names
from cerne.cli.failure import Failures
from cerne.cli.options import JsonOption, NameArgument, OtherTapOption, PublishOption, number
from cerne.cli.output import age, print_json, print_table, progress, tell_chosen_ports
from cerne.units import format_size

if TYPE_CHECKING:
    from cerne.client import Snapshot

app = typer.Typer(
    help="Snapshots: create, list, restore, export and import them.", no_args_is_help=True
)

SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="The snapshot.", autocompletion=snapshot_names)
]


@app.command()
def create(
    name: NameArgument,
    snapshot: Annotated[
        str | None,
        typer.Argument(metavar="SNAPSHOT", help="Its name; made up if not given."),
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Include its memory if it runs.")
    ] = True,
) -> None:
    """Save the present state of a machine, and print the snapshot's name."""
    from cerne.client import connect

    machine = connect().get(name)
    with progress() as report:
        made = machine.snapshot(snapshot, memory=memory, progress=report)
    print(made.name)


@app.command("ls")
def list_snapshots(json: JsonOption = False) -> None:
    """List the snapshots."""
    from cerne.client import connect

    host = connect()
    failures = Failures()
    snapshots = []
    for name in host.snapshot_names():
        with failures.told():
            snapshots.append(host.snapshot(name))
    if json:
        print_json([_summary(snapshot) for snapshot in snapshots])
    else:
        headings = ("NAME", "MACHINE", "IMAGE", "MEMORY", "SIZE", "ENGINE", "CREATED")
        print_table(headings, [_row(snapshot) for snapshot in snapshots])
    failures.end()


@app.command()
def restore(
    snapshot: SnapshotArgument,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Make another machine from it.")
    ] = None,
    network: OtherTapOption = None,
    publish: PublishOption = None,
) -> None:
    """Restore a machine, or make another one from the snapshot; print the machine's name."""
    from cerne.client import connect
    from cerne.errors import InputError
    from cerne.spec.ports import parse_publish

    ports = [parse_publish(text) for text in publish or ()]
    found = connect().snapshot(snapshot)
    if name is not None:
        with progress() as report:
            made = found.restore_as(name, ports, network, report)
        print(made.name)
        tell_chosen_ports(made)
        return
    if ports or network:
        raise InputError(
            "a restored machine keeps its own ports and its own network",
            hint="--publish and --network are for another machine: add --as NAME",
        )
    with progress() as report:
        restored = found.restore(report)
    print(restored.name)


@app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="SNAPSHOT...", help="Snapshots.", autocompletion=snapshot_names),
    ],
) -> None:
    """Remove snapshots; machines that were made from them stay."""
    from cerne.client import connect

    host = connect()
    failures = Failures()
    for name in names:
        with failures.told():
            host.remove_snapshot(name)
            print(name)
    failures.end()


@app.command()
def export(
    snapshot: SnapshotArgument,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
) -> None:
    """Write a snapshot and its image to one file for another host."""
    from cerne.client import connect

    with progress() as report:
        connect().snapshot(snapshot).export(target, report)
    print(target)


@app.command("import")
def import_snapshot(
    source: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file that `cerne snapshot export` wrote.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name; the exported name if not given.")
    ] = None,
) -> None:
    """Import a snapshot that another host exported, and print its name."""
    from cerne.client import connect

    with progress() as report:
        imported = connect().import_snapshot(source, name, report)
    print(imported.name)


def fork(
    name: NameArgument,
    count: Annotated[
        int | None,
        typer.Option(metavar="NUMBER", help="How many; one if not given.", parser=number),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="NAME", help="A child's name; may be repeated. Made up if not given."
        ),
    ] = None,
    network: OtherTapOption = None,
    publish: PublishOption = None,
) -> None:
    """Copy a running machine, which keeps running; print the names of the copies."""
    from cerne.client import connect
    from cerne.spec.ports import parse_publish

    ports = [parse_publish(text) for text in publish or ()]
    machine = connect().get(name)
    for child in machine.fork(count, names=names or (), ports=ports, network=network):
        print(child.name)
        tell_chosen_ports(child)


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    manifest = snapshot.manifest
    return (
        snapshot.name,
        manifest.spec.name,
        manifest.image,
        format_size(manifest.spec.memory) if manifest.has_memory else "none",
        format_size(snapshot.size),
        manifest.engine or "any",
        f"{age(datetime.fromtimestamp(snapshot.created, UTC))} ago",
    )


def _summary(snapshot: Snapshot) -> dict[str, object]:
    manifest = snapshot.manifest
    moment = datetime.fromtimestamp(snapshot.created, UTC)
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "machine": manifest.spec.name,
        "machine_id": manifest.machine,
        "image": manifest.image,
        "digest": manifest.digest,
        "memory": manifest.has_memory,
        "disk": snapshot.layer is not None,
        "size_bytes": snapshot.size,
        "engine": manifest.engine or None,
        "created": moment.isoformat(timespec="milliseconds"),
    }
