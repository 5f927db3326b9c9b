"""How a command fails: a line that says what is wrong, a line that says what to do, a status.

Commands that pass a guest's exit status through (``run``, ``exec``, ``shell``) use 125 for failures
of Cerne itself, as podman does, so that a caller can tell the two apart.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import logging
import sys
from collections.abc import Iterator
from shlex import quote

from cerne.cli.output import paint, printable
from cerne.errors import SEE_OPTIONS, CerneError, InputError, NotRunError, StorageError, exit_status

_log = logging.getLogger(__name__)

OWN_FAILURE = 125
"""The exit status of ``run``, ``exec`` and ``shell`` if Cerne failed and not the guest."""

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Their exit statuses if the guest does not run the command, as in shells."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in shells: 128 plus SIGINT."""


_command: contextvars.ContextVar[str] = contextvars.ContextVar("command", default="")


def begins(command: str) -> None:
    """Note the command that begins, for hints: ``cerne set``."""
    _command.set(command)


@contextlib.contextmanager
def reported(own_failure: int | None = None) -> Iterator[None]:
    """Report a failure on stderr and exit with its status, after stdout is flushed.

    Raises:
        SystemExit: the block failed; the status is that of `cerne.errors.exit_status`, or
            `own_failure` if given; 130 after Ctrl-C.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        raise SystemExit(INTERRUPTED) from interrupt
    except CerneError as error:
        report(error)
        if own_failure and isinstance(error, NotRunError):
            raise SystemExit(NOT_FOUND if error.missing else NOT_EXECUTABLE) from error
        raise SystemExit(own_failure or exit_status(error)) from error
    except OSError as error:
        refused = refused_by_system(error)
        report(refused)
        raise SystemExit(own_failure or exit_status(refused)) from error
    except Exception as error:
        # Nothing above this catches errors; the user sees a traceback only with --verbose.
        _log.debug("what failed", exc_info=error)
        report(mistake_of_ours(error))
        raise SystemExit(own_failure or 1) from error


def own_failures_are_125() -> contextlib.AbstractContextManager[None]:
    """Report a failure as `reported` does, and exit with 125 (130 after Ctrl-C)."""
    return reported(OWN_FAILURE)


def refused_by_system(error: OSError) -> CerneError:
    """An error of the system that no command expected: the reason, and the file."""
    why = error.strerror or str(error) or type(error).__name__
    files = [str(file) for file in (error.filename, error.filename2) if file is not None]
    message = f"the system refused {' and '.join(files) or 'an operation'}: {why}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(message, hint="free some space: df -h")
    return CerneError(message, hint=f"see: ls -ld {' '.join(map(quote, files))}" if files else "")


def mistake_of_ours(error: Exception) -> CerneError:
    """An error that only a mistake in Cerne's own code can raise."""
    what = str(error) or "no message"
    return CerneError(
        f"Cerne has a mistake in its code: {type(error).__name__}: {what}",
        hint="report it with the output of the same command with -v: cerne -v COMMAND",
    )


class Failures:
    """The failures of a command over several things: each is reported, and the rest is done."""

    def __init__(self) -> None:
        self._status = 0

    def add(self, error: CerneError) -> None:
        """Report one failure."""
        report(error)
        self._status = self._status or exit_status(error)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Report an error of this block, and go on after it."""
        try:
            yield
        except CerneError as error:
            self.add(error)

    def end(self) -> None:
        """End the command.

        Raises:
            SystemExit: something failed; the status is the first failure's.
        """
        if self._status:
            raise SystemExit(self._status)


def report(error: CerneError) -> None:
    """Print an error on stderr: its message, then each line of its hint."""
    _say(_by_option(error), _hint(error), "red")


def _hint(error: CerneError) -> str:
    """Its hint; the help of the command that was given a wrong value, if it says no better."""
    command = _command.get()
    general = isinstance(error, InputError) and error.hint in ("", SEE_OPTIONS)
    return f"see: {command} --help" if general and command else error.hint


def _by_option(error: CerneError) -> str:
    """The message, which names the option in place of the field that it sets."""
    if not isinstance(error, InputError) or not error.field:
        return error.message
    from cerne.spec.machine import flags

    flag = flags().get(error.field)
    if flag is None:
        return error.message
    option = next(iter(flag.names), f"--{error.field.replace('_', '-')}")
    return option + error.message.removeprefix(error.field)


def tell(message: str, hint: str = "") -> None:
    """Print a notice on stderr, which is not a failure."""
    _say(message, hint, "yellow")


def _say(message: str, hint: str, colour: str) -> None:
    print(f"{paint('cerne:', colour, sys.stderr)} {printable(message)}", file=sys.stderr)
    for line in hint.splitlines():
        print(f"  {printable(line)}", file=sys.stderr)
