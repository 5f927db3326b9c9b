"""Runs each command with each standard stream closed, full or without a reader; prints JSON.

A program of its own, so that nothing of the tests' own streams is in play. It forks for each run:
what commands import is imported once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import typer
from tests.e2e.forks import import_all

from cerne.cli import main
from cerne.cli.app import app

STATES = ("0 closed", "1 closed", "2 closed", "all closed", "1 full", "2 full", "1 unread")
PRINTING = (["--help"], ["run", "--help"], ["version"], ["ls"], ["image", "ls"])

_MORE = {"vsock": ["1000"], "detach": ["1"], "export": ["/nowhere/file"]}
"""What commands are given after a name, where it is not another one."""

_LONGEST = 60
"""Seconds after which a command that hangs is ended, and so found."""

_MAKING = (["kernel", "build"], ["pool", "create"], ["network", "create"], ["doctor"])
"""They begin at once what takes minutes or changes the host, and are left out."""


@dataclass
class Run:
    """One command in one state of its streams, and what came of it."""

    words: list[str]
    state: str
    status: int
    said: str


def refused() -> Iterator[list[str]]:
    """Each command's words, with names of things that are not there."""
    found = typer.main.get_command(app)
    for name, command in found.commands.items():  # type: ignore[attr-defined]
        for more, leaf in getattr(command, "commands", {"": command}).items():
            words = [name, more] if more else [name]
            if leaf.hidden or words in _MAKING:
                continue
            # A command has options once it is asked for.
            leaf.make_context(words[-1], [], resilient_parsing=True)
            needed = [p for p in leaf.params if p.required and p.param_type_name == "argument"]
            rest = _MORE.get(words[-1], ["nosuch"] * len(needed[1:]))
            yield words + ["nosuch"] * len(needed[:1]) + rest


def runs() -> Iterator[Run]:
    """What prints in each state, and what is refused in those where refusals go nowhere."""
    for words in PRINTING:
        yield from (_run(words, state) for state in STATES)
    for words in refused():
        yield from (_run(words, state) for state in ("1 open", "all closed"))


def _arrange(state: str, heard: int) -> None:
    which, how = state.split()
    signal.alarm(_LONGEST)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(heard, 1)
    os.dup2(heard, 2)
    streams = range(3) if which == "all" else [int(which)]
    for stream in streams:
        if how == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), stream)
        elif how == "open":
            pass
        elif how == "unread":
            reader, writer = os.pipe()
            os.dup2(writer, stream)
            os.close(reader)
            os.close(writer)
        else:
            os.close(stream)
            setattr(sys, ("stdin", "stdout", "stderr")[stream], None)


def _run(words: list[str], state: str) -> Run:
    with tempfile.TemporaryFile() as heard:
        child = os.fork()
        if child == 0:
            _arrange(state, heard.fileno())
            sys.argv = ["cerne", *words]
            main()
            os._exit(99)  # it always exits by itself
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        heard.seek(0)
        return Run(words, state, status, heard.read().decode())


if __name__ == "__main__":
    import_all()
    print(json.dumps([asdict(run) for run in runs()]))
