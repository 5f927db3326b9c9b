"""The arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from cerne.cli.complete import image_names, machine_names
from cerne.errors import InputError

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The machine.", autocompletion=machine_names)
]
NamesArgument = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Machines.", autocompletion=machine_names)
]
ImageArgument = Annotated[
    str, typer.Argument(metavar="IMAGE", help="The image.", autocompletion=image_names)
]
CommandArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[--] COMMAND...", help="What to run, and its arguments."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

NameOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its name.", show_default="made up")
]
PublishOption = Annotated[
    list[str] | None,
    typer.Option(
        "--publish", "-p", metavar="PORTS", help="[ADDRESS:]HOST:GUEST[/udp]; may be repeated."
    ),
]
OtherTapOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        metavar="NETWORK",
        help="Another tap (tap:INTERFACE) if the machine has a tap, or another network with a name"
        " if it is on one.",
        show_default="its network",
    ),
]
ColdOption = Annotated[bool, typer.Option("--cold", help="Boot it, even if its image is warm.")]
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        "-e",
        metavar="KEY[=VALUE]",
        help="KEY=VALUE for the command, or KEY with the value of this environment;"
        " may be repeated.",
    ),
]
EnvFileOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="A file with a line KEY=VALUE for each variable; may be repeated.",
    ),
]
InteractiveOption = Annotated[
    bool, typer.Option("--interactive", "-i", help="Connect stdin to the command.")
]
TerminalOption = Annotated[
    bool, typer.Option("--tty", "-t", help="Give the command a terminal, this one.")
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="How long to wait until the machine is ready, such as 90s.",
        show_default="2m",
    ),
]


def number(text: str | int) -> int:
    """The number that an option or an argument is.

    Raises:
        typer.BadParameter: it is not a whole number.
    """
    try:
        return int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a whole number; write it as 2") from error


def count(text: str | int) -> int:
    """The number of things that an option is, which is not negative.

    Raises:
        typer.BadParameter: it is not such a number.
    """
    found = number(text)
    if found < 0:
        raise typer.BadParameter(f"{text!r} is less than 0; write it as 20")
    return found


def command_words(words: list[str] | None) -> list[str]:
    """The command after the machine or the image, without its leading ``--``.

    Raises:
        InputError: the command begins with an option, which is meant for Cerne.
    """
    if not words:
        return []
    if words[0] == "--":
        return words[1:]
    if words[0].startswith("-"):
        raise InputError(
            f"{words[0]} comes after the image or the machine, where the command begins",
            hint=f"write options before it; if {words[0]} is the command, write -- before it",
        )
    return words
