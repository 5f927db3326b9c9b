"""Commands about pools: machines that are started before they are needed."""

from __future__ import annotations

from typing import Annotated

import typer

from cerne.cli.complete import pool_names
from cerne.cli.failure import Failures
from cerne.cli.fields import field_options, make_spec
from cerne.cli.options import (
    JsonOption,
    NameOption,
    number,
)
from cerne.cli.output import print_json, print_table, progress
from cerne.units import format_size

app = typer.Typer(
    help="Pools: machines that are started before they are needed.", no_args_is_help=True
)

PoolArgument = Annotated[
    str, typer.Argument(metavar="POOL", help="The pool.", autocompletion=pool_names)
]


@app.command()
@field_options("template")
def create(
    name: Annotated[str, typer.Argument(metavar="POOL", help="Its name.")],
    image: Annotated[
        str, typer.Option(metavar="IMAGE", help="The image of its machines.")
    ] = "tiny",
    ready: Annotated[
        int,
        typer.Option(
            metavar="NUMBER", help="How many machines the pool keeps ready.", parser=number
        ),
    ] = 3,
    **asked: object,
) -> None:
    """Make a pool, and fill it."""
    from cerne.client import connect
    from cerne.spec.names import check_name

    check_name(name, "a pool's")
    spec = make_spec(image, name, asked)
    pool = connect().create_pool(name, spec, ready)
    try:
        with progress() as report:
            pool.fill(report)
    except BaseException:
        pool.remove()
        raise
    print(name)


@app.command("ls")
def list_pools(json: JsonOption = False) -> None:
    """List the pools."""
    from cerne.client import connect

    failures = Failures()
    pools = []
    for pool in connect().pools():
        with failures.told():
            pools.append((pool, pool.spec))
    if json:
        print_json(
            [
                {
                    "name": pool.name,
                    "image": spec.image,
                    "memory": spec.memory,
                    "ready": pool.ready,
                    "wanted": pool.wanted,
                }
                for pool, spec in pools
            ]
        )
    else:
        rows = [
            (pool.name, spec.image, format_size(spec.memory), f"{pool.ready}/{pool.wanted}")
            for pool, spec in pools
        ]
        print_table(("NAME", "IMAGE", "MEMORY", "READY"), rows)
    failures.end()


@app.command()
def take(pool: PoolArgument, name: NameOption = None) -> None:
    """Take a machine out of a pool, and print its name; another is started in the background."""
    from cerne.client import connect

    print(connect().pool(pool).take(name).name)


@app.command()
def fill(pool: PoolArgument) -> None:
    """Make machines until the pool has as many as it keeps ready."""
    from cerne.client import connect

    with progress() as report:
        connect().pool(pool).fill(report)


@app.command()
def rm(pool: PoolArgument) -> None:
    """Remove a pool and the machines in it."""
    from cerne.client import connect

    connect().pool(pool).remove()
    print(pool)
