"""The ``cerne`` command's tree: which command is where, and the options before all of them."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cerne.cli import host

app = typer.Typer(
    name="cerne",
    help="Virtual machines: an operating system with one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
) -> None:
    """Virtual machines: an operating system with one command."""
    if verbose:
        # On stderr, so that what a command prints can still be piped.
        logging.basicConfig(format="%(relativeCreated)7.0f ms  %(name)s: %(message)s")
        logging.getLogger("cerne").setLevel(logging.DEBUG)


app.command()(host.version)
