"""The tree of commands of ``cerne``, and the options that come before each command."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Protocol, cast

import typer
from typer.core import TyperGroup

from cerne.cli import (
    attachments,
    capacity,
    doctor,
    guests,
    host,
    images,
    lifecycle,
    listing,
    networks,
    operations,
    pools,
    snapshots,
    usage,
)
from cerne.cli.failure import OWN_FAILURE
from cerne.cli.fields import LateCommand, make_late

if TYPE_CHECKING:
    from typer._click.core import Context

_GROUPS = {
    "Use a machine": ("run", "exec", "shell", "cp", "console", "logs", "vsock"),
    "Change its state": (
        *("create", "start", "stop", "kill", "pause", "resume", "suspend", "wake", "restart"),
        *("rename", "set", "rm"),
    ),
    "Look": ("ls", "inspect", "stats", "top", "events", "wait", "operation"),
    "Copy": ("fork", "snapshot", "pool"),
    "Attach": ("disk", "nic", "network", "publish"),
    "Prepare": ("image", "kernel", "doctor", "capacity", "balance", "version"),
}
"""The commands that ``cerne --help`` lists under each heading."""


_USAGE_ERROR = cast("type[Exception]", typer.BadParameter.mro()[1])
"""click's UsageError; Typer does not export it."""


class _HelpWriter(Protocol):
    """A writer of help texts (click's HelpFormatter)."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """Write a heading over the text that the block writes."""

    def write_dl(self, rows: Sequence[tuple[str, str]]) -> None:
        """Write names and their descriptions in two columns."""


class _PassesStatusThrough(LateCommand):
    """A command that exits with the status of the guest's command, and with 125 for wrong usage."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: Context | None = None,
        **extra: object,
    ) -> Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except _USAGE_ERROR as error:
            vars(error)["exit_code"] = OWN_FAILURE
            raise


class _WholeSummaries(TyperGroup):
    """A group of commands whose help has the whole first sentence of each, under headings."""

    def format_commands(self, ctx: object, formatter: _HelpWriter) -> None:
        shown = {name: command for name, command in self.commands.items() if not command.hidden}
        groups = {
            heading: [name for name in names if name in shown]
            for heading, names in _GROUPS.items()
            if self.name == "cerne"
        }
        for heading, names in (groups or {"Commands": [*shown]}).items():
            with formatter.section(heading):
                formatter.write_dl([(name, _summary(shown[name].help)) for name in names])


def _summary(text: str | None) -> str:
    """The first sentence or paragraph of a help text."""
    paragraph = " ".join((text or "").partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".")


app = typer.Typer(
    name="cerne",
    cls=_WholeSummaries,
    help="Virtual machines: an operating system with one command.",
    epilog="`cerne COMMAND --help` describes a command, `cerne doctor` this host.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        host.version()
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log.")] = False,
) -> None:
    """Virtual machines: an operating system with one command."""
    if verbose:
        # The log goes to stderr, so that a command's output can still be piped.
        logging.basicConfig(format="%(relativeCreated)7.0f ms  %(name)s: %(message)s")
        logging.getLogger("cerne").setLevel(logging.DEBUG)


# All words after the machine or the image belong to the command that runs in the guest.
_GUEST_COMMAND = {"allow_interspersed_args": False}

app.command(cls=_PassesStatusThrough, context_settings=_GUEST_COMMAND)(guests.run)
app.command(name="exec", cls=_PassesStatusThrough, context_settings=_GUEST_COMMAND)(guests.exec_)
app.command(cls=_PassesStatusThrough)(guests.shell)
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
app.command("ps", hidden=True)(listing.ls)
app.command("list", hidden=True)(listing.ls)
app.command()(listing.inspect)
app.command()(listing.logs)
app.command()(listing.events)
app.command()(listing.wait)
app.command()(usage.stats)
app.command()(usage.top)
for _group, _list in (
    (attachments.disk_app, attachments.list_disks),
    (attachments.nic_app, attachments.list_nics),
    (networks.app, networks.list_networks),
    (networks.publish_app, networks.list_ports),
    (snapshots.app, snapshots.list_snapshots),
    (pools.app, pools.list_pools),
    (operations.app, operations.list_operations),
    (images.app, images.list_images),
    (images.kernel_app, images.list_kernels),
):
    _group.info.cls = _WholeSummaries
    _group.command("list", hidden=True)(_list)
    make_late(_group)
app.add_typer(attachments.disk_app, name="disk")
app.add_typer(attachments.nic_app, name="nic")
app.add_typer(networks.app, name="network")
app.add_typer(networks.publish_app, name="publish")
app.add_typer(snapshots.app, name="snapshot")
app.add_typer(pools.app, name="pool")
app.add_typer(operations.app, name="operation")
app.add_typer(images.app, name="image")
app.add_typer(images.kernel_app, name="kernel")
app.command()(doctor.doctor)
app.command()(capacity.capacity)
app.command()(capacity.balance)
app.command()(host.version)
make_late(app)
