"""The ``cerne`` command's tree: which command is where, and the options before all of them."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from cerne.cli import (
    attachments,
    doctor,
    guests,
    host,
    images,
    lifecycle,
    listing,
    pools,
    snapshots,
)

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


# A command whose options belong to what it runs: everything after the first word is the guest's.
_GUEST_COMMAND = {"allow_interspersed_args": False}

app.command(context_settings=_GUEST_COMMAND)(guests.run)
app.command(name="exec", context_settings=_GUEST_COMMAND)(guests.exec_)
app.command()(guests.shell)
app.command()(guests.cp)
app.command()(guests.console)
app.command()(guests.vsock)
app.command()(lifecycle.create)
app.command()(lifecycle.start)
app.command()(lifecycle.stop)
app.command()(lifecycle.kill)
app.command()(lifecycle.pause)
app.command()(lifecycle.resume)
app.command()(lifecycle.suspend)
app.command()(lifecycle.wake)
app.command()(lifecycle.restart)
app.command()(lifecycle.rm)
app.command()(lifecycle.rename)
app.command(name="set")(lifecycle.set_)
app.command()(snapshots.fork)
app.command()(listing.ls)
app.command()(listing.inspect)
app.command()(listing.logs)
app.command()(listing.events)
app.command()(listing.wait)
app.command()(listing.stats)
app.add_typer(attachments.disk_app, name="disk")
app.add_typer(attachments.nic_app, name="nic")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(pools.app, name="pool")
app.add_typer(images.app, name="image")
app.add_typer(images.kernel_app, name="kernel")
app.command()(doctor.doctor)
app.command()(host.version)
