"""Commands about images, and about the kernel that Cerne's own images boot."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.complete import image_names, machine_names
from cerne.cli.failure import Failures
from cerne.cli.fields import field_options, make_spec
from cerne.cli.options import (
    JsonOption,
    TimeoutOption,
)
from cerne.cli.output import age, print_fields, print_json, print_table, progress, short_digest
from cerne.units import format_size

if TYPE_CHECKING:
    from cerne.client import Image, Recipe

app = typer.Typer(help="Images: build, import, list, export.", no_args_is_help=True)
kernel_app = typer.Typer(help="The kernel of Cerne's own images.", no_args_is_help=True)

ImageName = Annotated[
    str, typer.Argument(metavar="IMAGE", help="The image.", autocompletion=image_names)
]


@app.command("ls")
def list_images(json: JsonOption = False) -> None:
    """List the images of this host, then those that can be built."""
    from cerne.client import connect

    host = connect()
    images, unbuilt = host.stored_images(), host.unbuilt_images()
    if json:
        print_json([*map(_summary, images), *map(_unbuilt, unbuilt)])
        return
    rows = [
        (
            image.name,
            short_digest(image.digest),
            format_size(image.size),
            "yes" if image.agent else "no",
            f"{age(datetime.fromtimestamp(image.created, UTC))} ago",
            image.source,
        )
        for image in images
    ]
    rows += [
        (recipe.name, "", "", "yes", "not built", f"recipe: {recipe.description}")
        for recipe in unbuilt
    ]
    print_table(("NAME", "DIGEST", "SIZE", "AGENT", "CREATED", "SOURCE"), rows)


@app.command()
def build(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A name of `cerne image ls`."),
    ],
) -> None:
    """Build a built-in image, again if it is there already."""
    from cerne.client import connect

    with progress() as report:
        image = connect().build_image(recipe, report)
    print(f"{image.name}  {image.digest}")


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the new image.")],
    machine: Annotated[
        str,
        typer.Option(
            "--from", metavar="MACHINE", help="The machine.", autocompletion=machine_names
        ),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the name from the image that has it now.")
    ] = False,
) -> None:
    """Make an image of a stopped machine's root disk, without the machine's identity."""
    from cerne.client import connect

    with progress() as report:
        image = connect().get(machine).create_image(name, replace=replace, progress=report)
    print(f"{image.name}  {image.digest}")


@app.command()
@field_options("template")
def warm(
    image: ImageName,
    *,
    timeout: TimeoutOption = None,
    **asked: object,
) -> None:
    """Boot an image once and save the state, so that new machines of it start at once."""
    from cerne.client import connect
    from cerne.units import parse_duration

    spec = make_spec(image, "template", asked)
    limit = None if timeout is None else parse_duration(timeout)
    with progress() as report:
        made = connect().warm(spec, timeout=limit, progress=report)
    print(f"{image} is warm{'' if made else ' already'}")


@app.command("import")
def import_image(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A path or an http(s) address: qcow2, raw, vmdk, vdi, vhdx, VHD, ISO.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Its name; taken from the source if not given."),
    ] = None,
    checksum: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST", help="The digest that it must have, as sha256:HEX or sha512:HEX."
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="Its format; give raw for a raw disk that looks like another format.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the name from the image that has it now.")
    ] = False,
) -> None:
    """Import a disk image that was made elsewhere."""
    from cerne.client import connect

    with progress() as report:
        image = connect().import_image(
            source, name, checksum=checksum, format_=format_, replace=replace, progress=report
        )
    print(f"{image.name}  {image.digest}")


@app.command()
def inspect(name: ImageName, json: JsonOption = False) -> None:
    """Show all that is known about an image."""
    from cerne.client import connect

    image = connect().image(name)
    if json:
        print_json(_summary(image) | _paths(image))
        return
    fields = {
        "name": image.name,
        "digest": image.digest,
        "source": image.source,
        "created": datetime.fromtimestamp(image.created, UTC).isoformat(timespec="seconds"),
        "size": format_size(image.size),
        "agent": "yes" if image.agent else "no",
        "least memory": format_size(image.least_memory) if image.least_memory else "not known",
        **{field: str(value) for field, value in _paths(image).items() if value},
    }
    print_fields(fields)


@app.command()
def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images.", autocompletion=image_names),
    ],
) -> None:
    """Remove images that no machine, snapshot or pool uses."""
    from cerne.client import connect

    host = connect()
    failures = Failures()
    for name in names:
        with failures.told():
            host.remove_image(name)
            print(name)
    failures.end()


@app.command()
def export(
    name: ImageName,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="qcow2, raw, vmdk, vdi or vhdx.")
    ] = "qcow2",
) -> None:
    """Write an image's disk to a file."""
    from cerne.client import connect

    connect().export_image(name, target, format_)
    print(target)


@kernel_app.command("build")
def build_kernel() -> None:
    """Build the guest kernel from the distribution's source; this takes minutes, once."""
    from cerne.client import connect

    with progress() as report:
        kernel = connect().build_kernel(report)
    print(f"{kernel.version}  {kernel.path}")


@kernel_app.command("ls")
def list_kernels(json: JsonOption = False) -> None:
    """List the guest kernels that have been built."""
    from cerne.client import connect

    kernels = connect().kernels()
    if json:
        print_json(
            [
                {"version": k.version, "path": str(k.path), "current": current}
                for k, current in kernels
            ]
        )
        return
    rows = [(k.version, "yes" if current else "no", str(k.path)) for k, current in kernels]
    print_table(("VERSION", "CURRENT", "PATH"), rows)


def _summary(image: Image) -> dict[str, object]:
    return {
        "name": image.name,
        "built": True,
        "digest": image.digest,
        "source": image.source,
        "created": datetime.fromtimestamp(image.created, UTC).isoformat(timespec="milliseconds"),
        "size_bytes": image.size,
        "agent": image.agent,
        "least_memory_bytes": image.least_memory or None,
    }


def _unbuilt(recipe: Recipe) -> dict[str, object]:
    return {
        "name": recipe.name,
        "built": False,
        "digest": None,
        "source": f"recipe {recipe.name}",
        "created": None,
        "size_bytes": 0,
        "agent": True,
        "least_memory_bytes": None,
    }


def _paths(image: Image) -> dict[str, object]:
    boot, disk = image.boot, image.disk
    return {
        "kernel": str(boot.kernel) if boot else None,
        "initrd": str(boot.initrd) if boot and boot.initrd else None,
        "command_line": boot.command_line if boot else None,
        "disk": str(disk.path) if disk else None,
        "disk_format": disk.format if disk else None,
        "virtual_size_bytes": disk.virtual_size if disk else None,
    }
