"""Commands that work inside a guest: run, exec, shell, cp, console and vsock."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.environment import variables
from cerne.cli.failure import own_failures_are_125, tell
from cerne.cli.fields import field_options, make_spec
from cerne.cli.options import (
    ColdOption,
    CommandArgument,
    EnvFileOption,
    EnvOption,
    ImageArgument,
    InteractiveOption,
    NameArgument,
    NameOption,
    TerminalOption,
    TimeoutOption,
    command_words,
    number,
)
from cerne.cli.session import Request, run_session, shell_request
from cerne.errors import CerneError, InputError

if TYPE_CHECKING:
    from cerne.client import Machine

WorkdirOption = Annotated[
    str | None,
    typer.Option(
        "--workdir",
        "-w",
        metavar="DIRECTORY",
        help="The directory to run it in.",
        show_default="the user's home",
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option(
        "--user", "-u", metavar="USER", help="The user to run it as.", show_default="root"
    ),
]


@field_options("make")
def run(
    image: ImageArgument,
    command: CommandArgument = None,
    name: NameOption = None,
    remove: Annotated[bool, typer.Option("--rm", help="Remove the machine at the end.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Leave it running; print its name.")
    ] = False,
    interactive: InteractiveOption = False,
    terminal: TerminalOption = False,
    env: EnvOption = None,
    env_file: EnvFileOption = None,
    workdir: WorkdirOption = None,
    user: UserOption = None,
    *,
    cold: ColdOption = False,
    timeout: TimeoutOption = None,
    **asked: object,
) -> None:
    """Make a machine, start it, and run a command in it; without one, open a shell.

    The exit status is the command's; 125 where Cerne itself failed.
    """
    from cerne.cli.output import progress, tell_chosen_ports
    from cerne.client import connect
    from cerne.units import parse_duration

    with own_failures_are_125():
        request = _request(
            command, variables(env or (), env_file or ()), workdir, user, interactive, terminal
        )
        if detach and (remove or request.words):
            raise InputError(
                "--detach leaves the machine running and runs no command in it",
                hint="leave --rm and the command out, and use: cerne exec",
            )
        if not detach and not request.words:
            request = shell_request(user)
        host = connect()
        spec = make_spec(image, name or host.free_name(), asked)
        limit = None if timeout is None else parse_duration(timeout)
        with ExitStack() as lent:
            with progress() as report:
                if remove:
                    host.require_agent(spec, report)
                    running = host.running(spec, timeout=limit, cold=cold, progress=report)
                    machine = lent.enter_context(running)
                else:
                    machine = host.run(
                        spec, timeout=limit, keep_failed=True, cold=cold, progress=report
                    )
            if detach:
                print(machine.name)
                tell_chosen_ports(machine)
                host.warm_kind_of(machine.id)
                return
            if not remove:
                lent.callback(_tell_that_it_runs_on, machine)
            status = run_session(machine, request)
            # The template is made after the command, because making it costs as much as a boot.
            host.warm_kind_of(machine.id)
    raise typer.Exit(status)


def exec_(
    name: NameArgument,
    command: CommandArgument = None,
    interactive: InteractiveOption = False,
    terminal: TerminalOption = False,
    env: EnvOption = None,
    env_file: EnvFileOption = None,
    workdir: WorkdirOption = None,
    user: UserOption = None,
) -> None:
    """Run a command in a running machine.

    The exit status is the command's, or 128 and the signal's number where a signal ended it; 125
    where Cerne itself failed.
    """
    from cerne.client import connect

    with own_failures_are_125():
        request = _request(
            command, variables(env or (), env_file or ()), workdir, user, interactive, terminal
        )
        if not request.words:
            raise InputError(
                "no command was given",
                hint=f"type: cerne exec {name} -- COMMAND; or open a shell: cerne shell {name}",
            )
        status = run_session(connect().get(name), request)
    raise typer.Exit(status)


def shell(name: NameArgument, user: UserOption = None) -> None:
    """Open a shell in a running machine, on this terminal."""
    from cerne.client import connect

    with own_failures_are_125():
        status = run_session(connect().get(name), shell_request(user))
    raise typer.Exit(status)


def cp(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="PATH here, or NAME:PATH in a machine.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="PATH here, or NAME:PATH in a machine.")
    ],
) -> None:
    """Copy files and directories into a machine or out of it."""
    from cerne.client import connect

    from_machine, source_path = _place(source)
    to_machine, target_path = _place(target)
    if (from_machine is None) == (to_machine is None):
        raise InputError(
            "a copy needs one path in a machine and one path on this host",
            hint="cerne cp NAME:/path ./here, or cerne cp ./here NAME:/path",
        )
    host = connect()
    if to_machine is not None:
        host.get(to_machine).copy_in(source_path, target_path)
    elif from_machine is not None:
        host.get(from_machine).copy_out(source_path, target_path)


def console(name: NameArgument) -> None:
    """Attach this terminal to a machine's serial console; Ctrl-] leaves it."""
    from cerne.cli.console import attach
    from cerne.client import connect

    with connect().get(name).console() as connection:
        attach(connection, name)


def vsock(
    name: NameArgument,
    port: Annotated[int, typer.Argument(metavar="PORT", help="A port of AF_VSOCK.", parser=number)],
    listen: Annotated[
        bool, typer.Option("--listen", "-l", help="Wait for the guest to connect to the port.")
    ] = False,
) -> None:
    """Connect stdin and stdout to a vsock port of a running machine, as nc does for TCP."""
    from cerne.cli.stream import join
    from cerne.client import connect

    machine = connect().get(name)
    if not listen:
        with machine.vsock_connect(port) as connection:
            join(connection)
        return
    with machine.vsock_listen(port) as listener:
        connection, _ = listener.accept()
    with connection:
        join(connection)


def _tell_that_it_runs_on(machine: Machine) -> None:
    with contextlib.suppress(CerneError):
        if machine.state.live:
            name = machine.name
            tell(
                f"{name} still runs",
                f"open a shell in it: cerne shell {name}; remove it: cerne rm -f {name}",
            )


def _request(
    command: list[str] | None,
    env: dict[str, str],
    workdir: str | None,
    user: str | None,
    interactive: bool,
    terminal: bool,
) -> Request:
    words = command_words(command)
    return Request(words, env, workdir, user, interactive, terminal)


def _place(text: str) -> tuple[str | None, str]:
    """The machine (None for this host) and the path that one argument of a copy names.

    A path of this host with a colon needs a slash before the colon, as in ``./a:b``.
    """
    name, colon, path = text.partition(":")
    if colon and name and "/" not in name:
        return name, path or "."
    return None, text
