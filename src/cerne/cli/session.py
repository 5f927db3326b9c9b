"""A command in a guest, joined to this process's streams or to its terminal.

Keys and piped input are carried by a thread of their own, so that output is never held up by a
guest that does not read. Ctrl-C outside of a terminal session goes to the guest's command, which
decides what it means; a second one gives up on the guest.
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
    from cerne.guest import GuestAgent, GuestProcess, Output

# A login shell, the most comfortable one that the guest has.
_SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash -l; exec sh -l"]


@dataclass(frozen=True, slots=True)
class Request:
    """A command for a guest, and what of this process it is joined to.

    Raises, when made:
        InputError: a terminal is asked for, and this process has none.
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
    """A shell: on this terminal, or fed from stdin where that is no terminal."""
    return Request(_SHELL, user=user, interactive=True, terminal=sys.stdin.isatty())


def run_session(agent: GuestAgent, request: Request) -> int:
    """Run the command to its end; its exit status, or 128 and the number of a signal.

    Raises:
        GuestError: it could not be run, or the guest went away.
        KeyboardInterrupt: Ctrl-C was pressed a second time.
    """
    if request.terminal:
        return _run_on_terminal(agent, request)
    with (
        agent.popen(
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


def _run_on_terminal(agent: GuestAgent, request: Request) -> int:
    from cerne.guest import TerminalSize

    with (
        agent.popen(
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
    """Write what the process writes to this process's own streams, until it ends."""
    for output in process:
        write_all(_descriptor(output), output.data)


def _descriptor(output: Output) -> int:
    from cerne.guest import Stream

    return (sys.stdout if output.stream is Stream.STDOUT else sys.stderr).fileno()


@contextlib.contextmanager
def _input_carried(process: GuestProcess) -> Iterator[None]:
    """Carry stdin to the process in a thread, until stdin or the block ends.

    Raises:
        StreamError: stdin failed; the process was killed, so that it does not take for all of its
            input what is a part of it.
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
    """Send the first Ctrl-C to the process; the second is this command's own."""

    def passed_on(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        process.signal(number)

    before = signal.signal(signal.SIGINT, passed_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
