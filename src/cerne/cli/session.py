"""A command in a guest, connected to this process's streams or to its terminal.

A separate thread copies keys and piped input, so that a guest that does not read never delays
output. Outside of a terminal session, Ctrl-C goes to the guest's command, which decides what to do;
a second Ctrl-C ends the session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING

from cerne.cli.streams import write_all
from cerne.cli.terminal import (
    on_resize,
    raw_terminal,
    read_input,
    require_terminal,
    size,
)
from cerne.errors import GuestError, StreamError

if TYPE_CHECKING:
    from cerne.client import GuestProcess, Machine, Output

# A login shell: bash if the guest has it, or else sh.
_SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh -l"]


@dataclass(frozen=True, slots=True)
class Request:
    """A command for a guest, and the streams of this process that it is connected to.

    Raises, when made:
        InputError: the command needs a terminal, and stdin is not one.
    """

    words: list[str]
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    user: str | None = None
    interactive: bool = False
    terminal: bool = False

    def __post_init__(self) -> None:
        if self.terminal:
            require_terminal("leave --tty out to run it without a terminal")


def shell_request(user: str | None) -> Request:
    """A shell: on this terminal, or with input from stdin if that is not a terminal."""
    return Request(_SHELL, user=user, interactive=True, terminal=sys.stdin.isatty())


def run_session(machine: Machine, request: Request) -> int:
    """Run the command to its end; return its exit status, or 128 plus a signal's number.

    Raises:
        GuestError: the guest could not run it, or went away.
        KeyboardInterrupt: Ctrl-C was pressed a second time.
    """
    if request.terminal:
        return _run_on_terminal(machine, request)
    with (
        machine.popen(
            request.words, env=request.env, cwd=request.workdir, user=request.user
        ) as process,
        _interrupts_passed_on(process),
    ):
        if request.interactive:
            with _input_carried(process):
                _show(process)
        else:
            process.close_stdin()
            _show(process)
        return process.wait().status


def _run_on_terminal(machine: Machine, request: Request) -> int:
    from cerne.client import TerminalSize

    with (
        machine.popen(
            request.words,
            env={"TERM": os.environ.get("TERM", "dumb"), **request.env},
            cwd=request.workdir,
            user=request.user,
            terminal=TerminalSize(*size()),
        ) as process,
        raw_terminal(),
        on_resize(lambda rows, columns: process.resize(TerminalSize(rows, columns))),
        _input_carried(process),
    ):
        _show(process)
        return process.wait().status


def _show(process: GuestProcess) -> None:
    """Copy the guest process's output to this process's streams, until it ends."""
    for output in process:
        write_all(_descriptor(output), output.data)


def _descriptor(output: Output) -> int:
    from cerne.client import Stream

    return (sys.stdout if output.stream is Stream.STDOUT else sys.stderr).fileno()


@contextlib.contextmanager
def _input_carried(process: GuestProcess) -> Iterator[None]:
    """Copy stdin to the process in a thread, until stdin or the block ends.

    Raises:
        StreamError: stdin failed; the process was killed, so that it does not take a part of its
            input for all of it.
    """
    readable, writable = os.pipe()
    failures: list[StreamError] = []

    def carry() -> None:
        # A guest that went away is reported by the thread that reads its output.
        with contextlib.suppress(GuestError):
            try:
                while data := read_input(readable):
                    process.write(data)
            except StreamError as error:
                failures.append(error)
                process.signal(signal.SIGKILL)
            else:
                process.close_stdin()

    carrier = threading.Thread(target=carry, name="stdin", daemon=True)
    carrier.start()
    try:
        yield
    finally:
        os.close(writable)
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _interrupts_passed_on(process: GuestProcess) -> Iterator[None]:
    """Send the first Ctrl-C to the process; the second one interrupts this command."""

    def passed_on(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process.signal(number)

    before = signal.signal(signal.SIGINT, passed_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
