"""Commands about this host and this Cerne."""

from __future__ import annotations

from typing import Annotated

import typer


def version(
    json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print the version of Cerne."""
    from importlib.metadata import version as installed

    from cerne.cli.output import print_json

    found = installed("cerne")
    if json:
        print_json({"cerne": found})
    else:
        print(f"cerne {found}")
