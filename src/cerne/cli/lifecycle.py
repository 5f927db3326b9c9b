"""Commands that create machines, change their state and remove them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, cast

import typer

from cerne.cli.failure import Failures, tell
from cerne.cli.fields import field_options, make_spec, options_named
from cerne.cli.options import (
    ImageArgument,
    NameArgument,
    NameOption,
    NamesArgument,
    TimeoutOption,
)
from cerne.cli.output import tell_chosen_ports

if TYPE_CHECKING:
    from cerne.client import Machine
    from cerne.spec.asked import Adjustment

StopTimeoutOption = Annotated[
    str,
    typer.Option(
        "--timeout",
        metavar="TIME",
        help="How long the guest may take to shut down before the machine is killed.",
    ),
]


@field_options("make")
def create(image: ImageArgument, name: NameOption = None, **asked: object) -> None:
    """Define a machine without starting it, and print its name."""
    from cerne.cli.output import progress
    from cerne.client import connect

    host = connect()
    spec = make_spec(image, name or host.free_name(), asked)
    with progress() as report_progress:
        print(host.create(spec, report_progress).name)


def start(names: NamesArgument, timeout: TimeoutOption = None) -> None:
    """Start machines and wait until they are ready."""
    from cerne.units import parse_duration

    limit = None if timeout is None else parse_duration(timeout)
    _each(names, lambda machine: machine.start(timeout=limit), then=tell_chosen_ports)


def stop(names: NamesArgument, timeout: StopTimeoutOption = "10s") -> None:
    """Shut machines down; kill those that do not shut down in time."""
    from cerne.units import parse_duration

    limit = parse_duration(timeout)
    _each(names, lambda machine: machine.stop(timeout=limit), then=_tell_if_killed)


def kill(names: NamesArgument) -> None:
    """End machines at once, as if their power were cut."""
    _each(names, lambda machine: machine.kill())


def pause(names: NamesArgument) -> None:
    """Stop the CPUs of machines until they are resumed."""
    _each(names, lambda machine: machine.pause())


def resume(names: NamesArgument) -> None:
    """Continue paused machines."""
    _each(names, lambda machine: machine.resume())


def suspend(names: NamesArgument) -> None:
    """Save machines' memory to the disk and end their processes."""
    _each(names, lambda machine: machine.suspend())


def wake(names: NamesArgument) -> None:
    """Continue suspended machines from their saved state."""
    _each(names, lambda machine: machine.wake(), then=tell_chosen_ports)


def restart(names: NamesArgument, timeout: StopTimeoutOption = "10s") -> None:
    """Stop machines and start them again."""
    from cerne.units import parse_duration

    limit = parse_duration(timeout)

    def start_again(machine: Machine) -> None:
        machine.stop(limit)
        _tell_if_killed(machine)
        machine.start()

    _each(names, start_again, then=tell_chosen_ports)


def rm(
    names: NamesArgument,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Kill a machine that runs first.")
    ] = False,
) -> None:
    """Remove machines and their disks."""
    _each(names, lambda machine: machine.remove(force=force))


def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW_NAME", help="The new name.")],
) -> None:
    """Give a machine another name."""
    from cerne.client import connect

    connect().get(name).rename(new_name)


@field_options("set")
def set_(name: NameArgument, **asked: object) -> None:
    """Change a machine, at once if it runs, and for its next start.

    The word none removes the value of each option that has it in its description.
    """
    from cerne.client import connect

    machine = connect().get(name)
    with options_named(asked):
        machine.adjust(**cast("Adjustment", asked))
    print(name)
    if not machine.record.state.live:
        tell(f"{machine.name} does not run: the change takes effect at its next start")


def _each(
    names: list[str],
    act: Callable[[Machine], object],
    then: Callable[[Machine], None] = lambda _machine: None,
) -> None:
    """Act on each machine, also after another failed, and print the name of each that succeeded.

    `then` is called for each of these, after its name is printed.

    Raises:
        SystemExit: a machine failed and was reported; the status is the first failure's.
    """
    from cerne.client import connect

    host = connect()
    failures = Failures()
    for name in names:
        with failures.told():
            machine = host.get(name)
            act(machine)
            print(name)
            then(machine)
    failures.end()


def _tell_if_killed(machine: Machine) -> None:
    """Report that a machine was killed, if it was asked to shut down and did not."""
    from cerne.client import KILLED

    _, killed, why = machine.record.reason.partition(KILLED)
    if killed:
        tell(f"{machine.name} was killed: {why}")
