"""The arguments and options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cerne.cli.complete import image_names, machine_names
from cerne.errors import InputError

if TYPE_CHECKING:
    from cerne.spec.machine import MachineSpec

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

NameOption = Annotated[str | None, typer.Option(help="Its name.", show_default="made up")]
CpusOption = Annotated[int | None, typer.Option(help="Virtual CPUs.", show_default="1")]
MemoryOption = Annotated[
    str | None, typer.Option(help="Memory, such as 256M or 2G.", show_default="512M")
]
DiskOption = Annotated[
    str | None, typer.Option(help="Size of the root disk, such as 20G.", show_default="the image's")
]
DataDiskOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data-disk",
        metavar="SIZE|PATH[:ro][:format=raw]",
        help="An additional disk: new and empty, or a file of this host; may be repeated.",
    ),
]
PublishOption = Annotated[
    list[str] | None,
    typer.Option("--publish", "-p", help="[ADDRESS:]HOST:GUEST[/udp]; may be repeated."),
]
NetworkOption = Annotated[
    str | None,
    typer.Option(help="user, none, or tap:INTERFACE for a tap of this host.", show_default="user"),
]
OtherTapOption = Annotated[
    str | None,
    typer.Option(
        "--network",
        help="tap:INTERFACE, another tap, if the machine has a tap.",
        show_default="its network",
    ),
]
MountOption = Annotated[
    list[str] | None,
    typer.Option("--mount", help="SOURCE:TARGET[:ro], a directory of this host; may be repeated."),
]
CpuWeightOption = Annotated[
    int | None,
    typer.Option(help="Its share of CPU time among all machines: 1 to 10000; 100 is the default."),
]
EngineOption = Annotated[
    str | None, typer.Option(help="auto, qemu or native.", show_default="auto")
]
ColdOption = Annotated[bool, typer.Option("--cold", help="Boot it, even if its image is warm.")]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", help="KEY=VALUE; may be repeated.")
]
EnvOption = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", help="KEY=VALUE for the command; may be repeated."),
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
        help="How long to wait until the machine is ready, such as 90s.", show_default="2m"
    ),
]


def pairs(words: list[str] | None, option: str) -> dict[str, str]:
    """The keys and values of a repeated option KEY=VALUE.

    Raises:
        InputError: one of the words has no key or no ``=``.
    """
    found: dict[str, str] = {}
    for word in words or ():
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise InputError(
                f"{option} {word!r} is not KEY=VALUE", hint=f"write it as {option} COLOUR=blue"
            )
        found[key] = value
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


def make_spec(
    image: str,
    name: str,
    *,
    cpus: int | None = None,
    memory: str | None = None,
    disk: str | None = None,
    data_disk: list[str] | None = None,
    network: str | None = None,
    publish: list[str] | None = None,
    mount: list[str] | None = None,
    label: list[str] | None = None,
    engine: str | None = None,
    cpu_weight: int | None = None,
) -> MachineSpec:
    """The specification that the options of ``create`` and ``run`` make.

    Raises:
        InputError: one of the values is not allowed.
    """
    from cerne.spec.machine import machine_spec

    asked: dict[str, object] = {
        "cpus": cpus,
        "memory": memory,
        "disk": disk,
        "data_disks": data_disk,
        "network": network,
        "ports": publish,
        "mounts": mount,
        "labels": pairs(label, "--label") or None,
        "engine": engine,
        "cpu_weight": cpu_weight,
    }
    given = {field: value for field, value in asked.items() if value is not None}
    return machine_spec(image=image, name=name, **given)
